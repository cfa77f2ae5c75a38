"""Evaluation of a model, or of a folder of clips: measured beside real clips, shared among processes."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmdit import __version__
from mmdit.evaluation.clip_score import ClipScore
from mmdit.evaluation.clip_sets import ClipSet, RealClips, StoreClips, as_bytes, as_floats
from mmdit.evaluation.columns import (
    TOGETHER,
    Column,
    ColumnCache,
    clip_score_column,
    codec_column,
    drift_column,
    feature_column,
    flicker_column,
    reading_column,
)
from mmdit.evaluation.features import NETWORKS, ClipFeatures, Features, fingerprint_of
from mmdit.evaluation.figures import attribute_figures, codec_figures, distance_figures, mean_figures
from mmdit.evaluation.given import attributes_of, compare_given, given_figures
from mmdit.evaluation.over_time import FLICKER_FRAMES
from mmdit.evaluation.probe import EMBEDDED, Probe, load_probe
from mmdit.evaluation.protocol import Protocol
from mmdit.latents.codec import Codec
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.evaluation_plan import Plan, view_of
from mmdit.pipelines.process_group import Group
from mmdit.pipelines.sampled_clips import How, SampledClips

Progress = Callable[[int, int, str], None]
Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """What all parts of an evaluation share. `networks`: where the weights of each feature network are."""

    rules: Protocol
    group: Group
    cache: ColumnCache
    progress: Progress
    networks: Mapping[str, Path] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    probe: Probe = field(default_factory=load_probe)

    def load_networks(self) -> dict[str, Features]:
        return {name: NETWORKS[name](path, self.device) for name, path in self.networks.items()}


def evaluate(
    work: Work, plan: Plan, pipeline: ClipPipeline | None, how: How, given: str | None = None, force: bool = False
) -> dict[str, Any]:
    """All figures that the plan is for; on processes but the first, nothing.

    Args:
        pipeline: the plan's model; None for a folder of clips.
        given, force: as of `evaluate_given`; None for samples.
    """
    codec = None if pipeline is None else pipeline.codec
    if isinstance(plan.real, StoreClips):
        plan.real.codec = codec
    if pipeline is not None and given is not None:
        sampled = SampledClips(pipeline, plan.rows, how)
        return {"given": evaluate_given(work, sampled, plan.real, given, force=force)}
    view = view_of(work.rules)
    clips = plan.clips if pipeline is None else SampledClips(pipeline, plan.rows, how, view)
    figures = evaluate_clips(work, cast(ClipSet, clips), plan.real, plan.attributes)
    if codec is not None and plan.codec_clips is not None:
        figures["codec"] = evaluate_codec(work, codec, plan.codec_clips)
    return figures


def evaluation_facts(plan: Plan, work: Work, precision: str) -> dict[str, Any]:
    """What a result says beside its figures and its protocol: fingerprints, versions, and the machine."""
    device = work.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "real": {"place": str(plan.real.where), "clips": len(plan.real.rows), "fingerprint": plan.real.fingerprint},
        "clips": None if plan.clips is None else {
            "place": str(plan.clips.where), "clips": len(plan.clips.rows), "fingerprint": plan.clips.fingerprint,
        },
        "networks": {name: fingerprint_of(path) for name, path in plan.networks.items()},
        "probe": fingerprint_of(EMBEDDED),
        "made_on": {"device": f"{device.type} {name}", "precision": precision, "processes": work.group.count},
        "versions": {"mmdit": __version__, **{name: version(name) for name in ("torch", "diffusers", "transformers")}},
    }  # fmt: skip


def evaluate_clips(work: Work, generated: ClipSet, real: RealClips, attributes: Sequence[str]) -> dict[str, Any]:
    """The figures of two sets of clips, by the protocol; on processes but the first, nothing.

    attributes: those that are read from either side.
    """
    both, columns = _columns(work, generated, real, attributes)
    made = measure(work, generated, columns, "generated")
    there = cached(work, real, both, "real")
    if not work.group.is_first:
        return {}
    figures: dict[str, Any] = {
        "counts": {"generated": len(generated.rows), "real": len(real.rows)},
        "distances": distance_figures(there, made, work.rules),
        "means": mean_figures(there, made),
    }
    if attributes:
        sides = {"generated": (made["attributes"], generated.rows), "real": (there["attributes"], real.rows)}
        figures["attributes"] = attribute_figures(work.probe, attributes, sides)
    return figures


def _columns(
    work: Work, generated: ClipSet, real: RealClips, attributes: Sequence[str]
) -> tuple[list[Column], list[Column]]:
    """What is measured of real clips, and of generated ones."""
    rules, networks, frames = work.rules, work.load_networks(), generated.size[0]
    found = [feature_column(networks[name]) for name in rules.networks]
    if frames >= FLICKER_FRAMES:
        found.append(flicker_column())
    if frames > 1 and rules.drift_network is not None:
        found.append(drift_column(networks[rules.drift_network]))
    if attributes:
        found.append(reading_column(work.probe, fingerprint_of(EMBEDDED)))
    if not rules.clip_score:
        return found, found
    score = [clip_score_column(ClipScore(cast(ClipFeatures, networks["clip"])))]
    told = all(row.get("caption") is not None for row in real.rows)
    return found + (score if told else []), found + score


def evaluate_codec(work: Work, codec: Codec, real: RealClips) -> dict[str, Any]:
    """PSNR and SSIM of the codec on real clips."""
    columns = cached(work, real, [codec_column(codec)], "codec")
    return codec_figures(columns["codec"]) if work.group.is_first else {}


def evaluate_given(
    work: Work, sampled: SampledClips, real: RealClips, kind: str, *, force: bool = False
) -> dict[str, Any]:
    """Gives frames of every real clip, and measures what comes of it (`mmdit.evaluation.given.given_figures`).

    Args:
        sampled: clips for the rows of `real`.
        kind: "first", "last" or "both".
        force: give them although the model was not trained with that.
    """
    codec, names = sampled.pipeline.codec, attributes_of(work.probe, real.rows)

    def compare(numbers: Sequence[int]) -> list[dict[str, Any]]:
        original = real.read(numbers)
        floats = as_floats(original)
        given: dict[str, Any] = {"force_given": force}
        if kind in ("first", "both"):
            given["image"] = list(floats[:, :, 0])
        if kind in ("last", "both"):
            given["last_image"] = list(floats[:, :, -1])
        again = torch.cat([codec.decode(codec.encode(clip[None]).mean).cpu() for clip in floats])
        clips = {"original": original, "codec": as_bytes(again), "generated": sampled.read(numbers, **given)}
        return compare_given(work.probe, clips, [real.rows[number] for number in numbers], kind, names)

    place = f"{sampled.fingerprint}, {kind} of {real.fingerprint}{', forced' * force}"
    column = Column("given", fingerprint_of(EMBEDDED), lambda clips, rows: clips)  # for its name in the cache

    def look(numbers: range) -> list[dict[str, Any]]:
        kept = work.cache.get(place, column, numbers)
        if kept is not None:
            return cast(list[dict[str, Any]], json.loads(bytes(kept.tolist())))
        found = compare(numbers)
        work.cache.put(place, column, torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8), numbers)
        return found

    records = _shared(work, len(real.rows), look, "given")
    return given_figures([record for part in records for record in part]) if work.group.is_first else {}


def cached(work: Work, clips: RealClips, columns: Sequence[Column], what: str) -> Columns:
    """`measure`, of real clips: what the cache holds of them is taken from there, the rest is put there."""
    known, place = dict[str, Tensor](), clips.fingerprint
    if work.group.is_first:
        found = {column.name: work.cache.get(place, column) for column in columns}
        known = {name: values for name, values in found.items() if values is not None}
    names = [set(known)]
    if work.group.state is not None:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(names)
    missing = [column for column in columns if column.name not in names[0]]
    new = measure(work, clips, missing, what) if missing else {}
    for column in missing if work.group.is_first else ():
        work.cache.put(place, column, new[column.name])
    return known | new


def measure(work: Work, clips: ClipSet, columns: Sequence[Column], what: str) -> Columns:
    """The columns of all clips, a row a clip; on processes but the first, nothing.

    What is measured is kept part by part, until the evaluation is done: one that was stopped goes on from there.
    """

    place = clips.fingerprint

    def look(numbers: range) -> Columns:
        kept = {column.name: work.cache.get(place, column, numbers) for column in columns}
        known = {name: values for name, values in kept.items() if values is not None}
        missing = [column for column in columns if column.name not in known]
        if missing:
            here, rows = clips.read(numbers), [clips.rows[number] for number in numbers]
        for column in missing:
            known[column.name] = column.measure(here, rows)
            work.cache.put(place, column, known[column.name], numbers)
        return known

    parts = _shared(work, len(clips.rows), look, what)
    return {column.name: torch.cat([part[column.name] for part in parts]) for column in columns if parts}


def _shared(work: Work, count: int, look: Callable[[range], Any], what: str) -> list[Any]:
    """What `look` says of each part of `count` clips, in order; every process looks at its share. Nothing but on the
    first process."""
    parts = [range(first, min(first + TOGETHER, count)) for first in range(0, count, TOGETHER)]
    mine = list(enumerate(parts))[work.group.index :: work.group.count]
    found = []
    for done, (place, numbers) in enumerate(mine):
        work.progress(done, len(mine), what)
        found.append((place, look(numbers)))
    work.progress(len(mine), len(mine), what)
    if work.group.state is not None:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return [part for _, part in sorted(found, key=lambda pair: pair[0])] if work.group.is_first else []
