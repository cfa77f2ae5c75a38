"""A list of wishes made into files, in batches: run again, it goes on, and the files are the same."""

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdit.clips.video import clip_to_frames
from mmdit.diffusion import Projection
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.output import read_note, write_output

Note = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """One file that is wanted: below which name, from which prompt or label, and what it is to show."""

    file: str
    prompt: str | None = None
    label: str | None = None
    frames: int | None = None
    """Number of frames; None for that of the training clips, 1 for an image."""
    combination: str = "trained"
    """"trained" or "held-out": whether the attributes occurred together in training."""
    wanted: dict[str, str] = field(default_factory=dict)
    """Attributes that the file is to show."""
    negative: str = ""
    """What guidance leads away from."""
    size: tuple[int, int] | None = None
    """(height, width) in pixels; None for that of the training clips."""
    seed: int | None = None
    index: int | None = None
    """Seed and number that the noise is drawn from; None for the seed of all and the place in the list."""
    guidance: float | None = None
    """None for that of all."""

    @property
    def condition(self) -> str:
        return "prompt" if self.prompt is not None else "label"


@dataclass(frozen=True)
class Sampling:
    """How all clips of a call are sampled; fields as in `ClipPipeline.__call__`."""

    seed: int = 0
    steps: int = 12
    guidance: float = 2.0
    guidance_interval: tuple[float, float] | None = None
    precision: str = "float32"
    guidance_rescale: float = 0.0
    guidance_projection: Projection | None = None


def grant(
    pipeline: ClipPipeline,
    wishes: Sequence[Wish],
    folder: Path,
    *,
    sampling: Sampling,
    metadata: Note,
    batch_size: int,
    fps: float | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes the files of all wishes below `folder`, each with a note of how it was made.

    A batch whose files are all there, with the same notes, is left alone; a batch is always made whole, so that what a
    file shows does not depend on where an earlier call was stopped, nor on how many processes share the work.

    Args:
        metadata: what is written into each file, beside the wish itself (`wish_note`) and the machine (`made_on`).
        fps: frames a second; None for that of the training clips.
        share: (this process, number of processes): each makes every so many batches.
        progress: called after each step with (steps done, steps in all) of this process.
    """
    mine = batches(wishes, batch_size)[share[0] :: share[1]]
    for number, batch in enumerate(mine):
        notes = [{**metadata, **wish_note(pipeline, wishes[i], i, sampling, fps)} for i in batch]

        def told(step: int, steps: int, before: int = number) -> None:
            if progress is not None:
                progress(before * steps + step, len(mine) * steps)

        told(0, sampling.steps)
        if not all(is_made(folder / wishes[i].file, note) for i, note in zip(batch, notes, strict=True)):
            made = make_frames(pipeline, notes, told)
            for row, (i, note, frames) in enumerate(zip(batch, notes, made, strict=True)):
                about = {**note, **made_on(pipeline), "batch": [len(batch), row], "frames_sha256": frames_hash(frames)}
                write_output(folder / wishes[i].file, frames, note["fps"], about)
        told(sampling.steps, sampling.steps)


def wish_note(pipeline: ClipPipeline, wish: Wish, number: int, sampling: Sampling, fps: float | None = None) -> Note:
    """What the file of wish `number` of a list is made from; of this, of the weights and of the machine it depends."""
    default = pipeline.default_size()
    frames = default[0] if wish.frames is None else wish.frames
    height, width = wish.size or default[1:]
    interval, projection = sampling.guidance_interval, sampling.guidance_projection
    return {
        "prompt": wish.prompt,
        "negative": wish.negative,
        "label": wish.label,
        "seed": sampling.seed if wish.seed is None else wish.seed,
        "index": number if wish.index is None else wish.index,
        "frames": frames,
        "size": f"{height}x{width}",
        "fps": (pipeline.config.clip or {}).get("fps", 8) if fps is None else fps,
        "steps": sampling.steps,
        "guidance": sampling.guidance if wish.guidance is None else wish.guidance,
        "guidance_interval": list(interval) if interval else None,
        "guidance_rescale": sampling.guidance_rescale or None,  # None: as in files made before these were there
        "guidance_projection": asdict(projection) if projection else None,
        "precision": sampling.precision,
    }


def make_frames(
    pipeline: ClipPipeline, notes: Sequence[Note], progress: Callable[[int, int], None] | None = None
) -> list[np.ndarray]:
    """The frames, uint8 (frame, height, width, 3), of one batch of clips that go by what `wish_note` says.

    All have frames, size, steps, guidance and precision of the first, and a label where the first has one.
    """
    first = notes[0]
    height, width = map(int, first["size"].split("x"))
    projection = first.get("guidance_projection")
    clips = pipeline(
        [note["prompt"] or "" for note in notes] if pipeline.has_text else None,
        None if first["label"] is None else [note["label"] for note in notes],
        num_frames=first["frames"],
        height=height,
        width=width,
        num_inference_steps=first["steps"],
        guidance_scale=first["guidance"],
        guidance_interval=tuple(first["guidance_interval"]) if first["guidance_interval"] else None,
        guidance_rescale=first.get("guidance_rescale") or 0.0,
        guidance_projection=Projection(**projection) if projection else None,
        negative_prompt=[note["negative"] for note in notes] if pipeline.has_text else None,
        seed=[note["seed"] for note in notes],
        first_index=[note["index"] for note in notes],
        batch_size=len(notes),
        precision=first["precision"],
        output_type="pt",
        progress=progress,
    ).frames  # (B, 3, frame, height, width)
    return [clip_to_frames(clip) for clip in clips]


def made_on(pipeline: ClipPipeline) -> Note:
    """What may change the last bits of a clip without being asked for: versions, the device, threads of a CPU."""
    device = pipeline._execution_device
    on_cpu = device.type == "cpu"
    name = platform.machine() if on_cpu or device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads() if on_cpu else None,
    }


def is_made(path: Path, note: Note) -> bool:
    """Whether a file is there and was made as the note says."""
    if not path.is_file():
        return False
    there = read_note(path)
    return "frames_sha256" in there and all(there.get(key) == value for key, value in note.items())


def frames_hash(frames: np.ndarray) -> str:
    """sha256 over the shape and the values of frames, before any encoder."""
    return hashlib.sha256(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()


def batches(wishes: Sequence[Wish], size: int) -> list[list[int]]:
    """The numbers of the wishes of each batch; all of a batch are of one kind."""
    kinds: dict[object, list[int]] = {}
    for number, wish in enumerate(wishes):
        kinds.setdefault((wish.frames, wish.size, wish.label is None, wish.guidance), []).append(number)
    return [kind[first : first + size] for kind in kinds.values() for first in range(0, len(kind), size)]


def as_json(wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    """The wishes as plain values, for a file that tells what is in the folder."""
    return [asdict(wish) for wish in wishes]
