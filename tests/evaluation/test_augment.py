import pytest
import torch

from mmdit.evaluation.augment import Targets, lossy, spoil
from mmdit.seeds import generator

NAMES = {"garment": 5, "colour": 8, "pattern": 3, "motion": 5}


def batch(b: int = 64, frames: int = 9) -> tuple[torch.Tensor, Targets]:
    clips = torch.rand(b, 3, frames, 32, 24, generator=generator(0, "clips")) * 2 - 1
    probabilities = {key: torch.eye(n)[torch.arange(b) % n] for key, n in NAMES.items()}
    return clips, Targets(probabilities, {key: torch.ones(b) for key in NAMES})


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_lossy_clips_keep_shape_and_range_and_depend_on_the_generator_alone(frames: int) -> None:
    clips, _ = batch(8, frames)
    once, again, other = (lossy(clips.clone(), generator(seed, "lossy")) for seed in (0, 0, 1))
    assert once.shape == clips.shape
    assert once.abs().max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.isfinite(once).all()


def test_lossy_leaves_the_picture_recognisable() -> None:
    smooth = torch.linspace(-0.8, 0.8, 64).view(1, 1, 1, 64, 1).expand(16, 3, 9, 64, 48)
    assert (lossy(smooth.clone(), generator(0, "lossy")) - smooth).square().mean().sqrt() < 0.2


def test_spoilt_clips_have_honest_targets() -> None:
    clips, targets = batch(600)
    spoilt = spoil(clips.clone(), targets, ("motion",), 0.5, generator(0, "spoil"))
    changed = (spoilt != clips).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    for key, n in NAMES.items():
        values = targets.probabilities[key]
        assert torch.allclose(values.sum(1), torch.ones(600))
        assert torch.equal(values[~changed], torch.eye(n)[torch.arange(600) % n][~changed])
    assert {float(value) for value in targets.asked["motion"]} == {0.0, 1.0}
    # Whatever was done to a clip, it is not taught that the motion it had is still to be seen.
    sure = (targets.probabilities["motion"].amax(1) == 1) & (targets.asked["motion"] == 1)
    assert not (sure & changed).any()


def test_a_share_of_zero_spoils_nothing() -> None:
    clips, targets = batch(8)
    assert torch.equal(spoil(clips.clone(), targets, ("motion",), 0.0, generator(0, "spoil")), clips)


def test_the_loss_is_least_for_the_targets_and_ignores_what_is_not_asked() -> None:
    _, targets = batch(10)
    right = {key: 50 * (value - 0.5) for key, value in targets.probabilities.items()}
    assert targets.loss(right) < 1e-6
    wrong = dict(right, motion=-right["motion"])
    assert targets.loss(wrong) > 10
    for row in range(10):
        targets.skip(row, ("motion",))
    assert targets.loss(wrong) < 1e-6
