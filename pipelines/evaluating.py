"""Evaluation of a pipeline: the clips that it makes are measured beside real ones, shared among processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mmdit.evaluation.clip_sets import ClipSet, StoreClips, as_bytes, as_floats
from mmdit.evaluation.given import attributes_of, compare_given, given_figures
from mmdit.evaluation.probe import Probe, load_probe
from mmdit.evaluation.protocol import Protocol
from mmdit.evaluation.score import attribute_scores, columns
from mmdit.latents.store import LatentStore
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.process_group import Group
from mmdit.pipelines.sampled_clips import How, SampledClips

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Evaluation:
    """What is measured, against which clips, and by whom. `batch` clips are worked on at a time."""

    protocol: Protocol
    pipeline: ClipPipeline
    store: LatentStore
    group: Group
    batch: int = 16
    precision: str = "float32"

    @property
    def how(self) -> How:
        rules = self.protocol
        return How(rules.seed, rules.steps, rules.guidance, self.precision, self.batch)

    def real(self, split: str, count: int | None = None) -> StoreClips:
        codec = self.pipeline.codec if self.protocol.pixels == "reconstructions" else None
        return StoreClips(self.store, split, count=count, seed=self.protocol.seed, codec=codec)


def evaluate_given(work: Evaluation, kind: str, progress: Progress, *, force: bool = False) -> dict[str, Any]:
    """Gives frames of every real clip of the given split, and measures what comes of it (`given_figures`).

    kind: "first", "last" or "both". Raises Refused where the model was not trained with that, unless `force`.
    """
    real, probe, codec = work.real(work.protocol.given_split), load_probe(), work.pipeline.codec
    sampled, names = SampledClips(work.pipeline, real.rows, work.how), attributes_of(probe, real.rows)

    def measure(numbers: Sequence[int]) -> list[dict[str, Any]]:
        original = real.read(numbers)
        floats = as_floats(original)
        given: dict[str, Any] = {"force_given": force}
        if kind in ("first", "both"):
            given["image"] = list(floats[:, :, 0])
        if kind in ("last", "both"):
            given["last_image"] = list(floats[:, :, -1])
        again = [codec.decode(codec.encode(clip[None]).mean).cpu() for clip in floats]
        clips = {
            "original": original,
            "codec": as_bytes(torch.cat(again)),
            "generated": sampled.read(numbers, given),
        }
        return compare_given(probe, clips, [real.rows[number] for number in numbers], kind, names)

    try:
        return {"figures": given_figures(_shared(work, len(real.rows), measure, progress, "given"))}
    finally:
        real.close()


def evaluate_samples(work: Evaluation, progress: Progress) -> dict[str, Any]:
    """Makes the protocol's number of clips, and measures them beside the real ones."""
    rules, probe = work.protocol, load_probe()
    asked = work.real(rules.prompt_split).rows
    rows = [asked[number % len(asked)] for number in range(rules.samples)]
    sampled = SampledClips(work.pipeline, rows, work.how)
    real = work.real(rules.real_split, rules.real)
    names = [name for name in attributes_of(probe, [*rows, *real.rows]) if sampled.is_told(name)]
    try:
        seen = {
            whose: _shared(work, len(clips.rows), partial(_read, probe, clips), progress, whose)
            for whose, clips in (("generated", sampled), ("real", real))
        }
    finally:
        real.close()
    wanted = {"generated": rows, "real": real.rows}
    scores = {
        whose: attribute_scores(columns(read, names), columns(wanted[whose], names)) for whose, read in seen.items()
    }
    shares = {
        name: {
            whose: {"share": by[name].accuracy, "interval": (by[name].low, by[name].high)}
            for whose, by in scores.items()
        }
        for name in names
    }
    counts = {whose: len(read) for whose, read in seen.items()}
    return {"figures": {"counts": counts, "attributes": shares}}


def _read(probe: Probe, clips: ClipSet, numbers: Sequence[int]) -> list[dict[str, str]]:
    read = probe.read(clips.read(numbers))
    return [{name: values[i] for name, values in read.items()} for i in range(len(numbers))]


def _shared(
    work: Evaluation, count: int, measure: Callable[[Sequence[int]], list[Any]], progress: Progress, what: str
) -> list[Any]:
    """What `measure` says of each of `count` clips, in their order; every process measures its share, and gets all."""
    mine = list(range(count))[work.group.index :: work.group.count]
    records = list[tuple[int, Any]]()
    for start in range(0, len(mine), work.batch):
        numbers = mine[start : start + work.batch]
        progress(start, len(mine), what)
        records += zip(numbers, measure(numbers), strict=True)
    progress(len(mine), len(mine), what)
    if work.group.state is not None:
        from accelerate.utils import gather_object

        records = gather_object(records)
    return [record for _, record in sorted(records, key=lambda pair: pair[0])]
