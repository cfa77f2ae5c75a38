"""Training of the probe: its recipe, its data, its loop, and the measurement that says whether it may be trusted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmdit.config import Config
from mmdit.errors import Refused
from mmdit.evaluation.augment import Targets, lossy, spoil
from mmdit.evaluation.probe import Probe, ProbeConfig
from mmdit.evaluation.score import Score, attribute_scores
from mmdit.seeds import generator, seed_at

MOTION = ("motion",)


class ClipsRecipe(Config):
    """Made clips: the folder they are in, or are made in, and how many of which seed."""

    folder: Path
    count: int = Field(gt=0)
    seed: int


class ProbeRecipe(Config):
    """Everything that decides a probe."""

    train: ClipsRecipe
    """clips to learn from; all their splits are used"""
    test: ClipsRecipe
    """clips of another seed, to measure on"""
    size: tuple[int, int] = (64, 48)
    """height and width of the clips"""
    frames: int = Field(17, gt=0)
    fps: float = Field(8, gt=0)
    attributes: tuple[str, ...] = ("garment", "colour", "pattern", "motion")
    """columns of captions.csv to read"""
    widths: tuple[int, ...] = (24, 48, 96, 128)
    """channels after each stage of the network; multiples of 8"""
    clear: float = Field(0.6, gt=0, lt=1)
    """a reading less probable than this is unclear, and never right"""
    motion_frames: int = Field(9, gt=0)
    """fewest frames that motion is read from"""
    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    spoiled: float = Field(0.2, ge=0, lt=1)
    """share of the training clips that are made illegible in some way, to teach doubt"""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """of the products in training"""
    threads: int = Field(1, gt=0)
    """threads of the processor; another number gives slightly other weights"""
    seed: int = 0


@dataclass(frozen=True)
class ProbeClips:
    """clips: (n, 3, f, h, w) uint8; values: attribute -> n names; splits: n names."""

    clips: Tensor
    values: dict[str, list[str]]
    splits: list[str]


def read_made_clips(recipe: ProbeRecipe, part: ClipsRecipe) -> ProbeClips:
    """Reads the clips of one part of the recipe back from their mp4 files, with their attributes.

    Raises Refused when a clip cannot be read or lacks an attribute.
    """
    from mmdit.clips.decode import BadClip, read_clip
    from mmdit.clips.source import find_clips

    sources = find_clips(part.folder)
    clips = torch.empty(len(sources), 3, recipe.frames, *recipe.size, dtype=torch.uint8)
    for row, source in enumerate(sources):
        path = part.folder / source.path
        if missing := [key for key in recipe.attributes if not source.attributes.get(key)]:
            raise Refused("a clip lacks an attribute", where=path, got=f"no {missing[0]}")
        try:
            decoded = read_clip(path, frames=recipe.frames, size=recipe.size, fps=recipe.fps)
        except BadClip as error:
            raise Refused("a made clip cannot be read", where=path, got=error.reason, fix="remove it") from error
        clips[row] = torch.from_numpy(decoded.frames).permute(3, 0, 1, 2)
    values = {key: [source.attributes[key] for source in sources] for key in recipe.attributes}
    return ProbeClips(clips, values, [source.split for source in sources])


def _order(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers for ever, each pass in an order of its own; a pass's ragged end is left out."""
    batch_size = min(batch_size, count)
    epoch = 0
    while True:
        rows = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
        yield from (rows[i : i + batch_size] for i in range(0, count - batch_size + 1, batch_size))
        epoch += 1


def _seen_frames(step: int, recipe: ProbeRecipe) -> slice:
    """The frames that one step shows: mostly all, else a shorter stretch, now and then a single one."""
    g = generator(recipe.seed, "frames", step)
    kind = float(torch.rand((), generator=g))
    if kind < 0.75:
        return slice(0, recipe.frames)
    least = min(recipe.motion_frames, recipe.frames)
    many = 1 if kind > 0.85 else int(torch.randint(least, recipe.frames + 1, (), generator=g))
    start = int(torch.randint(0, recipe.frames - many + 1, (), generator=g))
    return slice(start, start + many)


def train_probe(data: ProbeClips, recipe: ProbeRecipe, progress: Callable[[int, float], None] | None = None) -> Probe:
    """Trains a probe; the result is a function of the clips and the recipe on one kind of processor.

    progress: called after each step with its number, from 1, and the loss.
    """
    torch.set_num_threads(recipe.threads)
    names = {key: tuple(sorted(set(data.values[key]))) for key in recipe.attributes}
    motion = tuple(key for key in MOTION if key in names)
    config = ProbeConfig(
        names=names,
        widths=recipe.widths,
        size=recipe.size,
        motion=motion,
        motion_frames=recipe.motion_frames,
        clear=recipe.clear,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_at(recipe.seed, "probe weights"))
        probe = Probe(config)
    labels = {key: torch.tensor([known.index(v) for v in data.values[key]]) for key, known in names.items()}
    optimizer = torch.optim.AdamW(probe.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    order = _order(len(data.clips), recipe.batch_size, recipe.seed)
    for step, rows in zip(range(recipe.steps), order, strict=False):
        clips, targets = _batch(data, labels, rows, step, recipe, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = probe(clips)
        loss = targets.loss(logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    return probe.eval().requires_grad_(False)


def _batch(
    data: ProbeClips, labels: Mapping[str, Tensor], rows: list[int], step: int, recipe: ProbeRecipe, config: ProbeConfig
) -> tuple[Tensor, Targets]:
    clips = data.clips[rows].float() / 127.5 - 1
    one_hot = {key: torch.eye(len(config.names[key]))[labels[key][rows]] for key in labels}
    targets = Targets(one_hot, {key: torch.ones(len(rows)) for key in labels})
    clips = spoil(clips, targets, config.motion, recipe.spoiled, generator(recipe.seed, "spoil", step))
    clips = lossy(clips[:, :, _seen_frames(step, recipe)], generator(recipe.seed, "lossy", step))
    if clips.shape[2] < config.motion_frames:
        for row in range(len(rows)):
            targets.skip(row, config.motion)
    return clips, targets


def measure(probe: Probe, data: ProbeClips) -> dict[str, dict[str, Score]]:
    """Scores on real clips: "trained" (train and validation splits) and "held-out" -> attribute -> Score."""
    read = probe.read(data.clips)
    groups = {
        "trained": [i for i, split in enumerate(data.splits) if split != "held_out"],
        "held-out": [i for i, split in enumerate(data.splits) if split == "held_out"],
    }
    return {
        group: attribute_scores(
            {key: [read[key][i] for i in rows] for key in data.values},
            {key: [data.values[key][i] for i in rows] for key in data.values},
        )
        for group, rows in groups.items()
        if rows
    }


def card(recipe: ProbeRecipe, scores: Mapping[str, Mapping[str, Score]], facts: Mapping[str, Any]) -> str:
    """The probe's README: what it is, how it was made, and what it reached."""
    lines = [
        "# The fashion probe",
        "",
        "A small 3D-convolution network that reads "
        f"{', '.join(recipe.attributes)} from a clip of the made fashion clips, for scoring generated ones.",
        f"It says `unclear` where no name reaches a probability of {recipe.clear}, or where there is nothing to read; "
        "an unclear reading never counts as right.",
        "",
        f"- parameters: {facts['parameters']:,}, stored in float16",
        f"- learned from: {recipe.train.count} made clips of seed {recipe.train.seed}, read back from their mp4 files, "
        f"{recipe.size[0]}x{recipe.size[1]}, {recipe.frames} frames at {recipe.fps:g} a second; softened, smeared, "
        f"made noisy; {recipe.spoiled:.0%} of them made illegible, to teach doubt",
        f"- command: `{facts['command']}`",
        f"- {recipe.steps} steps of {recipe.batch_size} clips on {recipe.threads} thread(s): {facts['seconds']:.0f} s, "
        f"{facts['processor_seconds']:.0f} s of processor time, PyTorch {facts['torch']}",
        "- licence: Apache-2.0, as everything here; the clips are drawn by mmdit itself",
        "",
        f"Read right, on {recipe.test.count} real clips of seed {recipe.test.seed} that it never saw:",
        "",
        "| combinations | attribute | right | of | share | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {group} | {key} | {s.correct} | {s.count} | {s.accuracy:.2%} | {s.low:.1%} to {s.high:.1%} |"
        for group, by_key in scores.items()
        for key, s in by_key.items()
    ]
    return "\n".join(lines) + "\n"
