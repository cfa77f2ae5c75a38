"""What an evaluation is of, found out and checked before any weights are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdit.diffusion import RectifiedFlow, make_scheduler
from mmdit.errors import Refused
from mmdit.evaluation.clip_sets import FolderClips, RealClips, Row, StoreClips, drawn_places
from mmdit.evaluation.features import find_network, least_frames
from mmdit.evaluation.given import attributes_of
from mmdit.evaluation.probe import load_probe
from mmdit.evaluation.protocol import Protocol
from mmdit.evaluation.view import View
from mmdit.latents.store import LatentStore
from mmdit.pipelines.loading import Source, find_source
from mmdit.pipelines.sampled_clips import sampled_rows, told_attributes


@dataclass(frozen=True)
class Plan:
    """What is measured, and against what.

    Attributes:
        model: what clips are sampled from; None where `clips` are there already.
        rows: what each sample is asked for.
        real: the clips that they are compared with, or that frames are given of.
        codec_clips: the clips that the codec is measured on; None for none.
        attributes: those that are read from either side.
        networks: where the weights of each feature network are.
    """

    model: Source | None
    clips: FolderClips | None
    rows: Sequence[Row]
    real: RealClips
    codec_clips: RealClips | None = None
    attributes: Sequence[str] = ()
    networks: Mapping[str, Path] = field(default_factory=dict)

    def close(self) -> None:
        """Ends the processes that read clips."""
        for clips in (self.clips, self.real, self.codec_clips):
            if clips is not None:
                clips.close()


def view_of(rules: Protocol) -> View:
    return View(rules.frames, rules.stride, rules.size, rules.crop)


def is_model(path: Path) -> bool:
    """Whether a folder is one to generate from: a run, a checkpoint or a pipeline; else it is one of clips."""
    return any((path / name).exists() for name in ("model_index.json", "checkpoints", "state.json", "run/checkpoints"))


def plan_given(
    path: Path, store: LatentStore | Path, rules: Protocol, kind: str, *, force: bool, fallback: bool = False
) -> Plan:
    """The plan of measuring given frames of the clips of a store.

    Raises:
        Refused: no model, one that was not trained with this kind (unless `force`), or nothing to give frames of.
    """
    model = find_source(path, fallback=fallback)
    if not isinstance(store, LatentStore):
        raise Refused("frames are given of the clips of a store", got=store, expected="--store STORE")
    _check_sampler(model, rules)
    if kind not in model.given_frames and not force:
        raise Refused(
            "this model was not trained with such given frames", got=kind,
            expected=" or ".join(model.given_frames) or "none",
            fix="train with conditions.given_frames, or insist with --force-given",
        )  # fmt: skip
    real = StoreClips(store, rules.given_split, View(), count=None, seed=rules.seed)
    if model.clip is not None and real.size != (model.clip["frames"], *model.clip["size"]):
        raise Refused("the clips are not of the model's size", where=real.where, got=real.size,
                      expected=(model.clip["frames"], *model.clip["size"]))  # fmt: skip
    return Plan(model, None, real.rows, real)


def plan_samples(
    path: Path, against: LatentStore | Path, rules: Protocol, weights: Mapping[str, Path], *, fallback: bool = False
) -> Plan:
    """The plan of comparing a model's samples, or a folder of clips, with the clips of a store or a folder.

    Args:
        weights: where the user says that the weights of feature networks are.

    Raises:
        Refused: nothing to measure or to compare with, too few clips or frames, conditions that the model does not
            have, or no weights of a network.
    """
    networks = _networks(rules, weights)
    view = view_of(rules)
    if not path.is_dir():
        raise Refused("nothing to measure", where=path, got="no such folder",
                      expected="a run, a checkpoint, a pipeline folder, or a folder of clips")  # fmt: skip
    model = find_source(path, fallback=fallback) if is_model(path) else None
    if model is not None:
        _check_sampler(model, rules)
    codec_clips = None
    prompts: Sequence[Row] = ()
    if isinstance(against, LatentStore):
        if rules.pixels == "reconstructions":
            _check_codec(model, against)
        real: RealClips = StoreClips(against, rules.real_split, view, count=rules.real, seed=rules.seed,
                                     reconstructed=rules.pixels == "reconstructions")  # fmt: skip
        if model is not None:
            places = drawn_places(against, rules.prompt_split, count=None, seed=rules.seed)[: rules.samples]
            prompts = [against.row(place) for _, place in places]
        if model is not None and rules.codec_clips and rules.pixels == "originals":
            count = min(rules.codec_clips, len(against.split(rules.real_split)))
            codec_clips = StoreClips(against, rules.real_split, View(), count=count, seed=rules.seed)
    else:
        real = FolderClips(against, view, count=rules.real, seed=rules.seed, drawn_start=True)
        prompts = real.rows
    clips, rows, size = _measured(path, model, rules, view, prompts)
    _check_sizes(rules, networks, size, real)
    if rules.clip_score and not all(row.get("caption") is not None for row in rows):
        raise Refused("clips without captions have no CLIP score", got="clip_score true", fix="say clip_score=false")
    names: Sequence[str] = ()
    if rules.attributes:
        names = attributes_of(load_probe(), [*rows, *real.rows])
        names = told_attributes(model, rows, names) if model is not None else names
    return Plan(model, clips, rows, real, codec_clips, names, networks)


def _measured(
    path: Path, model: Source | None, rules: Protocol, view: View, prompts: Sequence[Row]
) -> tuple[FolderClips | None, Sequence[Row], tuple[int, int, int] | None]:
    """The clips of a folder, or None; what is known or asked of each; their size, None where that is not known yet."""
    if model is not None:
        return None, sampled_rows(model, rules, prompts), _sampled_size(model, view)
    clips = FolderClips(path, view, count=rules.samples, seed=rules.seed)
    return clips, clips.rows, clips.size


def _networks(rules: Protocol, weights: Mapping[str, Path]) -> dict[str, Path]:
    asked = dict.fromkeys(rules.networks)
    if rules.drift_network is not None:
        asked[rules.drift_network] = None
    if rules.clip_score:
        asked["clip"] = None
    if rules.drift_network in ("i3d", "videomae"):
        raise Refused("this network sees no single frames", got=f"drift_network {rules.drift_network}",
                      expected="probe, inception or clip")  # fmt: skip
    for name in weights:
        if name not in asked:
            raise Refused("nothing in the protocol asks for this network", got=name, expected=", ".join(asked),
                          fix=f"say networks=[{name}]")  # fmt: skip
    return {name: find_network(name, weights.get(name)) for name in asked}


def _check_sampler(model: Source, rules: Protocol) -> None:
    if rules.sampler is not None:
        make_scheduler(rules.sampler, model.process or RectifiedFlow())  # refuses one that does not fit


def _check_codec(model: Source | None, store: LatentStore) -> None:
    """Reconstructions take the codec of the store: the model's."""
    known = model.state["codec"]["fingerprint"] if model is not None and model.state is not None else None
    if model is None or known not in (None, store.meta["codec"]["fingerprint"]):
        raise Refused("no codec to make reconstructions with", where=store.place, got=known or "a folder of clips",
                      expected=f"a model with the codec {store.meta['codec']['name']}",
                      fix="say pixels=originals")  # fmt: skip


def _sampled_size(model: Source, view: View) -> tuple[int, int, int] | None:
    """(frames, height, width) of samples; None for a pipeline that does not say what it makes."""
    if model.clip is None:
        return None
    frames = 1 if view.frames == 1 else model.clip["frames"]
    view.start(frames, None, "the clips that this model makes")
    return view.shown((frames, *model.clip["size"]))


def _check_sizes(rules: Protocol, networks: Mapping[str, Path], size: tuple[int, int, int] | None, real: Any) -> None:
    if size is not None and size != real.size:
        told = [f"{f} frames of {h}x{w}" for f, h, w in (size, real.size)]
        raise Refused("real clips of another size", where=real.where, got=told[1], expected=told[0],
                      fix="say frames=N size=[H,W], which both are then brought to")  # fmt: skip
    for name in rules.networks:
        least = least_frames(name, networks[name])
        if real.size[0] < least:
            raise Refused("too few frames for a feature network", got=f"{real.size[0]} for {name}",
                          expected=f"at least {least}")  # fmt: skip
