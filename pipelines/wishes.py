"""A list of wishes made into files, in batches: run again, it goes on, and the files are the same."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmdit.clips.video import clip_to_frames
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.output import write_output


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

    @property
    def condition(self) -> str:
        return "prompt" if self.prompt is not None else "label"


def grant(
    pipeline: ClipPipeline,
    wishes: Sequence[Wish],
    folder: Path,
    *,
    options: dict[str, Any],
    metadata: dict[str, Any],
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes the files of all wishes below `folder`.

    A batch whose files are all there is left alone; a batch is always made whole, so that what a file shows does not
    depend on where an earlier call was stopped. Wish i is clip number i of the seed in `options`.

    Args:
        options: what the pipeline is called with: seed, num_inference_steps, guidance_scale, precision.
        metadata: what is written into each file, beside the wish itself and its number.
    """
    fps = pipeline.config.clip["fps"]
    done = 0
    for first, batch in _batches(wishes, batch_size):
        if not all((folder / wish.file).is_file() for wish in batch):
            clips = pipeline(
                [wish.prompt or "" for wish in batch] if pipeline.has_text else None,
                [wish.label for wish in batch] if batch[0].label is not None else None,
                num_frames=batch[0].frames,
                first_index=first,
                batch_size=batch_size,
                output_type="pt",
                **options,
            ).frames
            for number, (wish, clip) in enumerate(zip(batch, clips, strict=True), start=first):
                about = {**metadata, **options, "index": number, "prompt": wish.prompt, "label": wish.label}
                write_output(folder / wish.file, clip_to_frames(clip), fps, about)
        done += len(batch)
        if progress is not None:
            progress(done, len(wishes))


def _batches(wishes: Sequence[Wish], size: int) -> list[tuple[int, list[Wish]]]:
    """(number of the first, wishes) of each batch; all wishes of a batch are of one kind."""
    batches: list[tuple[int, list[Wish]]] = []
    for number, wish in enumerate(wishes):
        last = batches[-1][1] if batches else []
        alike = last and (last[0].frames, last[0].condition) == (wish.frames, wish.condition)
        if alike and len(last) < size:
            last.append(wish)
        else:
            batches.append((number, [wish]))
    return batches


def as_json(wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    """The wishes as plain values, for a file that tells what is in the folder."""
    return [asdict(wish) for wish in wishes]
