"""Training a codec: the batches, the optimizer, and that a run learns, goes on, and says no."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmdit import seeds
from mmdit.clips.video import write_clip
from mmdit.config import load_config, parse_config
from mmdit.errors import Refused, Stopped
from mmdit.latents.codec import load_codec
from mmdit.latents.codec_files import shipped_codecs
from mmdit.latents.fidelity import psnr
from mmdit.training.codec import measure, train_codec
from mmdit.training.codec_data import Kind, make_batch, read_split, to_clips
from mmdit.training.codec_recipe import CodecRecipe, learning_rate_scale, loss_weights, second_stage
from mmdit.training.muon import KernelMuon, orthogonal_kernel

SIZE, FRAMES = (16, 24), 5
VAE = {
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["LTXVideo095DownBlock3D"],
    "downsample_type": ["spatiotemporal"],
    "spatio_temporal_scaling": [True],
    "layers_per_block": [1, 0],
    "decoder_block_out_channels": [16],
    "decoder_spatio_temporal_scaling": [True],
    "decoder_layers_per_block": [1, 0],
    "decoder_inject_noise": [False, False],
    "upsample_residual": [True],
    "upsample_factor": [2],
}


def moving_bar(number: int) -> Any:
    """Frames of a bright bar that moves over a ground of one colour."""
    frames = np.empty((FRAMES, *SIZE, 3), np.uint8)
    frames[:] = (40 + 7 * number % 90, 60, 90)
    for place in range(FRAMES):
        left = (number + 2 * place) % (SIZE[1] - 6)
        frames[place, :, left : left + 6] = (250, 220 - 5 * number % 200, 40)
    return frames


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips in the three splits."""
    folder = tmp_path_factory.mktemp("codec") / "clips"
    rows = []
    for number in range(24):
        path = folder / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, moving_bar(number), 8)
        rows.append((path.name, ("train", "train", "train", "validation", "held_out")[number % 5]))
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "split"), *rows])
    return folder


def recipe(clips: Path, **changes: Any) -> CodecRecipe:
    values = {
        "clips": str(clips),
        "size": SIZE,
        "frames": FRAMES,
        "vae": VAE,
        "batch_size": 4,
        "batch_frames": 3,
        "steps": 12,
        "decay_steps": 4,
        "warmup_steps": 2,
        "save_every": 3,
        "validation_clips": 4,
        "precision": "float32",
    }
    return parse_config(CodecRecipe, values | changes, where="test")


# --- data ---


def test_a_split_is_read_as_bytes_evenly_chosen(clips: Path) -> None:
    every = read_split(clips, "train", frames=FRAMES, size=SIZE, fps=8)
    assert every.shape == (15, FRAMES, *SIZE, 3)
    assert every.dtype == torch.uint8
    some = read_split(clips, "train", frames=FRAMES, size=SIZE, fps=8, most=5)
    assert torch.equal(some, every[::3])
    # What comes back is what was drawn, save what video coding costs.
    assert psnr(to_clips(every[:1]), to_clips(torch.from_numpy(moving_bar(0))[None])).item() > 18
    assert to_clips(every).min() >= -1
    assert to_clips(every).max() <= 1


def test_clips_that_are_not_there_or_damaged_are_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="none of split other"):
        read_split(clips, "other", frames=FRAMES, size=SIZE, fps=8)
    with pytest.raises(Refused):
        read_split(tmp_path / "nowhere", "train", frames=FRAMES, size=SIZE, fps=8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(Refused, match=r"bad\.mp4"):
        read_split(tmp_path, "train", frames=FRAMES, size=SIZE, fps=8)


@pytest.fixture(scope="module")
def data() -> Tensor:
    return torch.randint(0, 256, (20, 9, 16, 24, 3), generator=seeds.generator(0, "bytes"), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("clip", (8, 3, 5, 16, 24)),
        ("long", (4, 3, 9, 16, 24)),
        ("image", (32, 3, 1, 16, 24)),
        ("mosaic", (2, 3, 5, 32, 48)),
        ("enlarged", (2, 3, 5, 32, 48)),
    ],
)
def test_a_batch_is_a_function_of_seed_and_step(data: Tensor, kind: Kind, shape: tuple[int, ...]) -> None:
    def batch(seed: int, step: int) -> Tensor:
        return make_batch(data, kind, batch_size=8, frames=5, seed=seed, step=step)

    one = batch(0, 3)
    assert one.shape == shape
    assert torch.equal(one, batch(0, 3))
    assert not torch.equal(one, batch(0, 4))
    assert not torch.equal(one, batch(1, 3))
    assert one.abs().max() <= 1


def test_some_batches_are_mirrored(data: Tensor) -> None:
    whole = to_clips(data)
    mirrored = []
    for step in range(20):
        clip = make_batch(data, "long", batch_size=2, frames=5, seed=0, step=step)[0]
        assert any(torch.equal(clip, one) or torch.equal(clip, one.flip(-1)) for one in whole)
        mirrored.append(any(torch.equal(clip, one.flip(-1)) for one in whole))
    assert 3 <= sum(mirrored) <= 17


def test_a_mosaic_holds_four_whole_clips(data: Tensor) -> None:
    mosaic = make_batch(data, "mosaic", batch_size=4, frames=9, seed=0, step=0)[0]
    whole = [one for clip in to_clips(data) for one in (clip, clip.flip(-1))]
    for down in (slice(0, 16), slice(16, 32)):
        for right in (slice(0, 24), slice(24, 48)):
            assert any(torch.equal(mosaic[:, :, down, right], one) for one in whole)


# --- optimizer ---


@pytest.mark.parametrize("shape", [(6, 20, 3, 3, 3), (20, 6, 3, 3, 3), (8, 8, 1, 1, 1)])
def test_a_kernels_step_is_orthogonal_along_its_shorter_axis(shape: tuple[int, ...]) -> None:
    direction = seeds.normal(shape, 0, "kernel")
    # One channel of the shorter axis is far stronger than the others, and must not be so in the step.
    direction.select(int(shape[1] < shape[0]), 0).mul_(30)
    found = orthogonal_kernel(direction)
    assert found.shape == shape
    rows = found.transpose(0, 1) if shape[1] < shape[0] else found
    matrix = rows.reshape(rows.shape[0], -1)
    values = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5)
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (found * direction).sum() > 0


def test_a_kernels_step_has_the_size_of_adams() -> None:
    kernel = torch.nn.Parameter(torch.zeros(16, 32, 3, 3, 3))
    kernel.grad = seeds.normal(tuple(kernel.shape), 0, "gradient")
    KernelMuon([kernel], lr=1e-3).step()
    assert 0.1e-3 < kernel.square().mean().sqrt().item() < 0.3e-3
    assert (kernel * kernel.grad).sum() < 0


def test_the_learning_rate_rises_stays_and_falls_to_zero(clips: Path) -> None:
    plan = recipe(clips, steps=10, warmup_steps=2, decay_steps=4)
    rates = [learning_rate_scale(plan, step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert learning_rate_scale(recipe(clips, steps=10, decay_steps=0), 9) == 1


def test_the_loss_may_be_weighted_otherwise_while_the_rate_falls(clips: Path) -> None:
    plan = recipe(clips, steps=10, decay_steps=4, absolute=0.5, edges=0.25, decay_edges=0.125)
    assert [loss_weights(plan, step) for step in (0, 5, 6, 9)] == [(0.5, 0.25)] * 2 + [(0.5, 0.125)] * 2


# --- runs ---


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    train_codec(recipe(clips), folder)
    return folder


def weights_of(folder: Path) -> bytes:
    return next((folder / "codec").glob("*.safetensors")).read_bytes()


def test_a_run_learns_and_says_how_well(clips: Path, tmp_path: Path) -> None:
    plan = recipe(clips, steps=150, decay_steps=75, save_every=150, warmup_steps=5, ema=0.9)
    seen: list[tuple[int, int]] = []
    figures = train_codec(
        plan,
        tmp_path / "run",
        codec_folder=tmp_path / "made",
        progress=lambda step, steps, _: seen.append((step, steps)),
    )
    assert seen == [(step, 150) for step in range(1, 151)]
    assert figures == json.loads((tmp_path / "run" / "figures.json").read_text())
    codec = load_codec(tmp_path / "made")
    held_out = read_split(clips, "held_out", frames=FRAMES, size=SIZE, fps=8)
    again = measure(codec, held_out, "held_out")
    assert again == {name: value for name, value in figures.items() if name.startswith("held_out")}
    grey = psnr(torch.zeros_like(to_clips(held_out)), to_clips(held_out)).mean().item()
    assert figures["held_out_psnr"] > grey + 6
    assert figures["held_out_image_psnr"] > grey + 6
    # Normalised over the clips it learned from: zero mean and unit deviation in each channel.
    posterior = codec.encode(to_clips(read_split(clips, "train", frames=FRAMES, size=SIZE, fps=8)))
    std, mean = torch.std_mean(posterior.mean, (0, 2, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(std, torch.ones(4), rtol=0.02, atol=0)
    # The posterior's deviation is the noise the decoder learned with.
    raw = codec.vae.encode(to_clips(held_out)).latent_dist.std
    torch.testing.assert_close(raw, torch.full_like(raw, plan.latent_noise), rtol=1e-3, atol=0)


def test_what_is_kept_are_the_averaged_weights(whole: Path) -> None:
    state = load_file(whole / "checkpoint.safetensors")
    kept = load_file(next((whole / "codec").glob("*.safetensors")))
    averages = {name[4:]: value for name, value in state.items() if name.startswith("ema.")}
    assert set(kept) == {*averages, "latents_mean", "latents_std"}
    assert all(torch.equal(kept[name], value.half()) for name, value in averages.items())
    assert not torch.equal(kept["decoder.conv_out.conv.weight"], state["vae.decoder.conv_out.conv.weight"].half())


def test_a_run_that_was_stopped_ends_as_one_that_was_not(clips: Path, tmp_path: Path, whole: Path) -> None:
    def stop_at(limit: int) -> Any:
        def stop(step: int, steps: int, words: str) -> None:
            if step == limit:
                raise KeyboardInterrupt

        return stop

    for limit in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            train_codec(recipe(clips), tmp_path, progress=stop_at(limit))
    train_codec(recipe(clips), tmp_path)
    assert weights_of(tmp_path) == weights_of(whole)
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, whole)
    ]
    for line in lines[0] + lines[1]:
        del line["seconds"]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [3, 6, 9, 12]


def test_a_finished_run_is_measured_and_left_as_it_is(clips: Path, whole: Path) -> None:
    before = weights_of(whole)
    figures = train_codec(recipe(clips), whole)
    assert weights_of(whole) == before
    assert figures["steps"] == 12


def test_a_run_may_be_cut_short_before_its_decay_and_not_after(clips: Path, tmp_path: Path, whole: Path) -> None:
    def stop(step: int, steps: int, words: str) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec(recipe(clips, steps=100), tmp_path, progress=stop)
    train_codec(recipe(clips), tmp_path)
    assert weights_of(tmp_path) == weights_of(whole)
    with pytest.raises(Refused, match=r"has begun to fall, .*steps 20"):
        train_codec(recipe(clips, steps=20), tmp_path)
    with pytest.raises(Refused, match=r"decay_edges 0\.0 at step 12"):
        train_codec(recipe(clips, decay_edges=0.0), tmp_path)


THEN = {"trained": "decoder", "vae": {"decoder_layers_per_block": [2, 1]}, "steps": 6, "seed": 1}


@pytest.fixture(scope="module")
def two_stages(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    figures = train_codec(recipe(clips, then=THEN), folder)
    assert figures["steps"] == 18
    return folder


def test_a_second_stage_of_the_decoder_leaves_the_latents(clips: Path, whole: Path, two_stages: Path) -> None:
    first, last = load_codec(two_stages / "first"), load_codec(two_stages / "codec")
    assert first.fingerprint == load_codec(whole / "codec").fingerprint != last.fingerprint
    some = to_clips(read_split(clips, "held_out", frames=FRAMES, size=SIZE, fps=8))
    latents = first.encode(some).mean
    assert torch.equal(last.encode(some).mean, latents)
    assert not torch.equal(last.decode(latents), first.decode(latents))
    assert last.vae.config.decoder_layers_per_block == [2, 1]


def test_further_blocks_begin_as_the_identity(clips: Path, tmp_path: Path) -> None:
    still = THEN | {"lr": 1e-12, "muon_lr": 1e-12}
    train_codec(recipe(clips, then=still), tmp_path)
    some = to_clips(read_split(clips, "held_out", frames=FRAMES, size=SIZE, fps=8))
    first, last = load_codec(tmp_path / "first"), load_codec(tmp_path / "codec")
    latents = first.encode(some).mean
    torch.testing.assert_close(last.decode(latents), first.decode(latents), rtol=1e-3, atol=1e-4)


def test_a_second_stage_that_was_stopped_ends_as_one_that_was_not(
    clips: Path, tmp_path: Path, two_stages: Path
) -> None:
    def stop(step: int, steps: int, words: str) -> None:
        if (step, steps) == (4, 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec(recipe(clips, then=THEN), tmp_path, progress=stop)
    train_codec(recipe(clips, then=THEN), tmp_path)
    assert weights_of(tmp_path) == weights_of(two_stages)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"stepz": 3}, "then.*did you mean steps"),
        ({"vae": {"latent_channels": 6}}, "cannot begin with the weights of the first"),
    ],
)
def test_a_second_stage_that_cannot_be_is_refused(clips: Path, tmp_path: Path, then: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        train_codec(recipe(clips, then=then), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_another_recipe_in_the_same_folder_is_refused_with_both_values(clips: Path, whole: Path) -> None:
    with pytest.raises(Refused, match=r"got seed 1, expected seed 0"):
        train_codec(recipe(clips, seed=1), whole)


def test_a_loss_that_is_no_number_stops_the_run(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="not a number"):
        train_codec(recipe(clips, lr=1e30, muon_lr=1e30), tmp_path)


def test_sizes_the_codec_cannot_take_are_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    for changes in ({"frames": 4}, {"size": (16, 20)}, {"batch_frames": 2}):
        with pytest.raises(Refused, match="the nearest is"):
            train_codec(recipe(clips, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vae": {"latent_chanels": 4}}, "vae.latent_chanels.*did you mean vae.latent_channels"),
        ({"batchsize": 4}, "batchsize.*did you mean batch_size"),
        ({"kinds": ["clips"]}, "kinds"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_key(clips: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        recipe(clips, **changes)


def test_the_shipped_codec_is_of_the_shipped_recipe() -> None:
    plan = load_config(CodecRecipe, "codec_fashion")
    last = second_stage(plan, "codec_fashion") or plan
    config = json.loads((shipped_codecs()["fashion"] / "config.json").read_text())
    assert {name: config[name] for name in last.vae} == last.vae
