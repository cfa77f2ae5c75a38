from pathlib import Path

import pytest
import torch

from mmdit.clips.made import make_clips, plan_clips
from mmdit.config import find_recipe, load_config
from mmdit.errors import Refused
from mmdit.evaluation.probe import Probe
from mmdit.evaluation.probe_training import ProbeClips, ProbeRecipe, card, measure, read_made_clips, train_probe
from mmdit.seeds import uniform

SMALL = [
    "train={folder: a, count: 24, seed: 1}", "test={folder: b, count: 24, seed: 2}",
    "size=[32, 24]", "frames=9", "widths=[8, 16, 16]", "batch_size=8", "steps=3", "precision=float32",
]  # fmt: skip


def recipe(*changes: str) -> ProbeRecipe:
    return load_config(ProbeRecipe, find_recipe("probe_fashion"), [*SMALL, *changes])


def flat_clips(count: int = 48) -> ProbeClips:
    """Clips of one flat colour each, red or blue, that grow brighter or darker: learnt within a few steps."""
    noise = uniform((count, 3, 9, 32, 24), 0, "flat") * 40
    clips, values, ramp = noise, {"colour": list[str](), "motion": list[str]()}, torch.linspace(0, 120, 9).view(9, 1, 1)
    for i in range(count):
        red, up = i % 2 == 0, i // 2 % 2 == 0
        clips[i, 0 if red else 2] += 80
        clips[i] += ramp if up else ramp.flip(0)
        values["colour"].append("red" if red else "blue")
        values["motion"].append("brightens" if up else "darkens")
    splits = ["held_out" if i % 4 == 3 else "train" for i in range(count)]
    return ProbeClips(clips.clamp(0, 255).to(torch.uint8), values, splits)


def weights(probe: Probe) -> torch.Tensor:
    return torch.cat([value.flatten() for value in probe.state_dict().values()])


def test_it_learns_what_there_is_to_learn() -> None:
    data = flat_clips()
    losses: list[float] = []
    probe = train_probe(
        data,
        recipe("attributes=[colour, motion]", "steps=60", "learning_rate=0.01"),
        lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 60
    scores = measure(probe, data)
    assert scores.keys() == {"trained", "held-out"}
    assert scores["trained"]["colour"].accuracy >= 0.9
    assert scores["held-out"]["motion"].count == 12
    assert scores["trained"]["motion"].accuracy >= 0.9


def test_training_is_a_function_of_clips_and_recipe() -> None:
    data, settings = flat_clips(), recipe("attributes=[colour, motion]")
    torch.manual_seed(1)
    once = weights(train_probe(data, settings))
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(once, weights(train_probe(data, settings)))
    assert not torch.equal(once, weights(train_probe(data, recipe("attributes=[colour, motion]", "seed=1"))))


def test_made_clips_are_read_back_with_their_attributes(tmp_path: Path) -> None:
    settings = recipe(f"train.folder={tmp_path}", "train.count=6", "size=[64, 48]")
    make_clips(tmp_path, 6, 1, frames=9)
    data = read_made_clips(settings, settings.train)
    made = plan_clips(6, 1)
    assert data.clips.shape == (6, 3, 9, 64, 48)
    assert data.values["garment"] == [clip.garment for clip in made]
    assert data.splits == [clip.split for clip in made]
    text = (tmp_path / "captions.csv").read_text().replace(",motion,", ",gait,")
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(Refused, match="no motion"):
        read_made_clips(settings, settings.train)


def test_a_clip_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    settings = recipe(f"train.folder={tmp_path}", "train.count=2", "size=[64, 48]")
    make_clips(tmp_path, 2, 1, frames=9)
    (tmp_path / "clips" / "000001.mp4").write_bytes(b"no video")
    with pytest.raises(Refused, match="000001.mp4"):
        read_made_clips(settings, settings.train)


def test_the_card_states_data_command_time_and_figures() -> None:
    data = flat_clips()
    settings = recipe("attributes=[colour, motion]")
    facts = {
        "command": "mmdit train-probe x",
        "parameters": 1234,
        "seconds": 61.4,
        "processor_seconds": 55.0,
        "torch": "2.13",
    }
    text = card(settings, measure(train_probe(data, settings), data), facts)
    for part in (
        "24 made clips of seed 1",
        "24 real clips of seed 2",
        "mmdit train-probe x",
        "1,234",
        "61 s",
        "held-out",
    ):
        assert part in text
