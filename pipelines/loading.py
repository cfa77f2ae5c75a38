"""From a folder on disk to a pipeline: a run, one of its checkpoints, or a saved pipeline."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmdit import __version__
from mmdit.conditioning import Labels, TextEncoder, load_text_encoder
from mmdit.conditioning.text import quiet
from mmdit.diffusion import make_scheduler, samplers_for
from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.latents.codec import Codec, load_codec
from mmdit.models import DiT
from mmdit.pipelines.broadcast_file import broadcast_path
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.defaults import SamplingDefaults, read_defaults
from mmdit.pipelines.null_conditions import NullConditions
from mmdit.pipelines.request import check_choice
from mmdit.training.build import describe_process, read_process
from mmdit.training.checkpoint import find_checkpoint, read_state, verify_checkpoint
from mmdit.training.lora import base_folder, load_network

WEIGHTS = ("ema", "raw")
DEFAULT_SAMPLERS = ("euler", "dpm++2m")  # the first one that fits the process
EXPECTED = "a run folder, one of its checkpoints, or a pipeline folder"


@dataclass(frozen=True)
class Source:
    """What clips can be generated from, as read from its small files: no weights are loaded yet.

    `folder` is the checkpoint or the pipeline folder; `state` is state.json, or None for a pipeline folder. `process`
    is what the network was trained for, None for a pipeline folder that does not say it; `given_frames` are the kinds
    of given frames that it was trained with, `dropped` those of its conditions that can be left out, `sampling` how it
    samples where a call does not say.
    """

    folder: Path
    labels: Labels | None
    has_text: bool
    clip: dict[str, Any] | None
    origin: dict[str, Any]
    process: Process | None
    state: dict[str, Any] | None
    given_frames: Sequence[str] = ()
    dropped: Sequence[str] | None = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def null_conditions(self) -> NullConditions:
        """Which conditions can be left out."""
        return NullConditions(self.labels is not None, self.has_text, self.dropped)


def find_source(path: str | Path, *, fallback: bool = False) -> Source:
    """Looks at a run folder (its newest checkpoint), a checkpoint or a pipeline folder; a checkpoint is verified.

    Args:
        fallback: when the newest checkpoint of a run is damaged, take the newest one that is not.

    Raises:
        Refused: there is nothing to generate from, or it is damaged.
    """
    if not isinstance(path, str | os.PathLike):
        raise Refused("not a path", got=type(path).__name__, expected=EXPECTED)
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return _pipeline_source(folder)
    if (folder / "checkpoints").is_dir():
        folder = find_checkpoint(folder, fallback=fallback)
    elif (folder / "state.json").is_file():
        verify_checkpoint(folder)
    elif (folder / "run" / "checkpoints").is_dir():
        raise Refused("this is not a run folder", got=folder, expected=EXPECTED, fix=f"did you mean {folder / 'run'}?")
    else:
        got = "a file" if folder.is_file() else "a folder without a checkpoint" if folder.is_dir() else "no such folder"
        raise Refused("nothing to generate from", where=folder, got=got, expected=EXPECTED)
    state = read_state(folder)
    origin = {"step": state["step"], "checkpoint": _sha256(folder / "manifest.json")}
    config = folder.parent.parent / "config.yaml"
    if config.is_file():
        origin["config"] = _sha256(config)
    labels = Labels(state["label_names"]) if state["label_names"] else None
    process = read_process(state)
    given, dropped = state.get("given_frames") or (), state.get("null_conditions")
    return Source(folder, labels, bool(state["text_encoder"]), state["clip"], origin, process, state, given, dropped)


def load_pipeline(
    source: str | Path | Source,
    *,
    weights: str = "ema",
    codec: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> ClipPipeline:
    """The pipeline of a run folder, a checkpoint or a pipeline folder.

    Args:
        source: the folder, or what `find_source` said of it.
        weights: of a checkpoint, the averaged ones ("ema") or those last trained ("raw").
        codec: where the codec lies now, if not where the clips were encoded with it.

    Raises:
        Refused: nothing to generate from, something damaged, or a codec other than that of the training clips.
    """
    source = source if isinstance(source, Source) else find_source(source)
    check_choice("weights", weights, WEIGHTS)
    with quiet():
        if source.state is None:
            pipeline = _load_saved(source)
            if not pipeline.config.origin:
                pipeline.register_to_config(origin=source.origin)
        else:
            pipeline = _load_checkpoint(source, source.state, weights, codec)
        path = find_broadcast(source, weights)
        pipeline.broadcast_file = path if path.is_file() else None
        return pipeline.to(device)


def find_broadcast(source: Source, weights: str = "ema") -> Path:
    """Where the calibrated attention broadcast of these weights lies, or is to lie."""
    return broadcast_path(source.folder, None if source.state is None else weights)


def origin_of(source: Source, weights: str = "ema") -> dict[str, Any]:
    """The origin of the pipeline that is loaded from a source."""
    return source.origin if source.state is None else {**source.origin, "weights": weights}


def own_scheduler(source: Source) -> str:
    """The class name of the scheduler that the pipeline of a source has when it is loaded."""
    if source.state is None:
        index = json.loads((source.folder / "model_index.json").read_text(encoding="utf-8"))
        return str((index.get("scheduler") or [None, None])[1])
    return type(_default_scheduler(read_process(source.state))).__name__


def call_facts(source: Source, pipeline: ClipPipeline, sampler: str | None = None) -> dict[str, Any]:
    """What all files of a call share: hashes of the weights, the config and the codec, the sampler and what makes it
    faster."""
    return {
        "mmdit": __version__,
        **source.origin,
        **(pipeline.config.origin or {}),
        "codec": pipeline.codec.fingerprint,
        "sampler": sampler or type(pipeline.scheduler).__name__,
        "faster": pipeline.faster,
    }


def _pipeline_source(folder: Path) -> Source:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        network = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused("not a whole pipeline folder", where=folder, got=str(error)) from None
    if index.get("_class_name") != ClipPipeline.__name__:
        raise Refused("a pipeline of another kind", where=folder, got=index.get("_class_name"), expected="ClipPipeline")
    labels = Labels(index["label_names"]) if index.get("label_names") else None
    process = read_process(index["process"]) if index.get("process") else None
    has_text, origin = network.get("text_dim", 0) > 0, index.get("origin") or _origin_of(folder)
    return Source(
        folder, labels, has_text, index.get("clip"), origin, process, None, index.get("given_frames") or (),
        index.get("null_conditions"), read_defaults(index.get("sampling")),
    )  # fmt: skip


def _load_saved(source: Source) -> ClipPipeline:
    from diffusers.utils import logging as theirs

    theirs.disable_progress_bar()
    try:
        return ClipPipeline.from_pretrained(str(source.folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused("the pipeline folder cannot be loaded", where=source.folder, got=first_line) from error
    finally:
        theirs.enable_progress_bar()


def _load_checkpoint(source: Source, state: dict[str, Any], weights: str, codec: str | Path | None) -> ClipPipeline:
    folder = source.folder / "ema" if weights == "ema" else source.folder
    transformer = load_network(folder)
    encoder = _load_encoder(base_folder(folder), state, transformer)
    process = read_process(state)
    return ClipPipeline(
        transformer=transformer,
        vae=load_trained_codec(state["codec"], codec).vae,
        scheduler=_default_scheduler(process),
        text_encoder=encoder.model if encoder else None,
        tokenizer=encoder.tokenizer if encoder else None,
        label_names=state["label_names"] or None,
        clip=source.clip,
        given_frames=source.given_frames,
        null_conditions=source.dropped,
        origin=origin_of(source, weights),
        process=describe_process(process),
    )


def _default_scheduler(process: Process) -> Any:
    return make_scheduler(next(name for name in DEFAULT_SAMPLERS if name in samplers_for(process)), process)


def _load_encoder(folder: Path, state: dict[str, Any], transformer: DiT) -> TextEncoder | None:
    if not state["text_encoder"]:
        return None
    trained_along = (folder / "text_encoder").is_dir()
    encoder = load_text_encoder(folder if trained_along else state["text_encoder"])
    if encoder.dim != transformer.config.text_dim:
        raise Refused(
            "the text encoder is not the one of the training",
            where=state["text_encoder"],
            got=f"{encoder.dim} features",
            expected=f"{transformer.config.text_dim}",
        )
    return encoder


def load_trained_codec(trained_with: dict[str, Any], moved_to: str | Path | None = None) -> Codec:
    """The codec of a checkpoint's "codec", or of another place that it lies at now; Refused for another codec."""
    codec = load_codec(moved_to or trained_with["name"])
    if codec.fingerprint != trained_with["fingerprint"]:
        raise Refused(
            "the codec is not the one that the clips were encoded with",
            where=moved_to or trained_with["name"],
            got=f"fingerprint {codec.fingerprint[:16]}",
            expected=f"fingerprint {trained_with['fingerprint'][:16]}",
            fix="name the right one as codec (--codec)",
        )
    return codec


def _origin_of(folder: Path) -> dict[str, Any]:
    """Of a pipeline folder that does not say where its weights come from: a hash of them."""
    weights = sorted((folder / "transformer").glob("*.safetensors"))
    return {"checkpoint": hashlib.sha256("".join(map(_sha256, weights)).encode()).hexdigest()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
