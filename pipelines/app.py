"""What stands behind the page of `mmdit app`: from a filled-in form to a clip in a folder, without the page itself."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmdit
from mmdit.clips.video import clip_to_frames
from mmdit.errors import Refused, Stopped
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.given_files import read_given
from mmdit.pipelines.output import write_output
from mmdit.pipelines.wishes import Sampling, Wish, frames_hash, made_on, wish_note

MOST_LENGTHS = 40  # that are offered to choose from
LONGEST = 2  # times the length of the training clips: the longest that is offered
WORDS = {"frames": "length", "steps": "number of steps", "guidance": "guidance scale"}


@dataclass(frozen=True)
class Form:
    """One form as it was filled in; "" and None are empty fields. `image` is the path of a picture, the first frame."""

    prompt: str = ""
    label: str = ""
    image: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int | None = 0
    steps: int | None = 12
    guidance: float | None = 2.0


@dataclass(frozen=True)
class Made:
    """One clip: its file (mp4; png for a single frame), a small picture of it, how it was made, and what was noted."""

    file: Path
    still: Path
    about: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def is_picture(self) -> bool:
        return self.file.suffix == ".png"


class Stop:
    """A request to stop one clip, which any thread may make."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises Stopped once it was asked for."""
        if self._event.is_set():
            raise Stopped("cancelled")


class Playground:
    """Makes clips with one pipeline, one at a time whoever asks.

    Args:
        pipeline: what makes the clips.
        facts: goes into every file that is made: hashes of weights and config.
    """

    def __init__(self, pipeline: ClipPipeline, facts: dict[str, Any] | None = None) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.fps = (pipeline.config.clip or {}).get("fps", 8)
        self.facts = {"mmdit": mmdit.__version__, **(facts or {}), **(pipeline.config.origin or {})}
        self.facts |= {"codec": pipeline.codec.fingerprint, "sampler": type(pipeline.scheduler).__name__}
        self._one_at_a_time = threading.Lock()

    @property
    def takes_image(self) -> bool:
        """Whether a clip can be made to begin with a picture."""
        return takes_image(self.pipeline)

    def lengths(self) -> list[int]:
        """Numbers of frames to choose from: those that the codec's rule allows, thinned out where there are many."""
        trained, height, width = self.pipeline.default_size()
        allowed = [n for n in range(1, LONGEST * trained + 1) if self._possible(n, height, width)]
        every = -(-len(allowed) // MOST_LENGTHS)
        return [n for i, n in enumerate(allowed) if i % every == 0 or n in (trained, allowed[-1])]

    def size_step(self) -> tuple[int, int]:
        """Height and width are multiples of these."""
        patch = self.pipeline.transformer.config.patch_size
        space = self.pipeline.codec.space_factor
        return space * patch[1], space * patch[2]

    def make(
        self,
        form: Form,
        folder: Path,
        *,
        stop: Stop | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Made:
        """Makes the clip that a form asks for, and writes it into `folder`.

        Args:
            progress: called with (steps done, steps in all).

        Raises:
            Refused: before any work, for what the model cannot make, naming what it can.
            Stopped: `stop` was asked for.
        """
        stop = stop or Stop()
        _check_filled(form, ("seed", "steps", "guidance", "height", "width", "frames"))
        assert form.seed is not None and form.steps is not None and form.guidance is not None
        self.pipeline.latent_grid(form.frames, form.height, form.width)  # before a picture is brought to this size
        image, given = self._read_image(form)

        def after_step(done: int, steps: int) -> None:
            stop.check()
            if progress is not None:
                progress(done, steps)

        with self._one_at_a_time, _noted() as notes:
            stop.check()
            clip = self.pipeline(
                form.prompt if self.pipeline.has_text else form.prompt or None,
                form.label or None,
                num_frames=form.frames,
                height=form.height,
                width=form.width,
                image=image,
                num_inference_steps=form.steps,
                guidance_scale=form.guidance,
                seed=form.seed,
                output_type="pt",
                progress=after_step,
            ).frames[0]  # (3, frame, height, width)
        frames = clip_to_frames(clip)
        number = 1 + max((int(path.name[:4]) for path in folder.glob("[0-9]" * 4 + "-*")), default=0)
        name = f"{number:04d}-{_slug(form.prompt or form.label or 'clip')}"
        made = Made(
            folder / f"{name}.{'png' if len(frames) == 1 else 'mp4'}",
            folder / "stills" / f"{name}.png",
            self._about(form, given, frames),
            tuple(notes),
        )
        write_output(made.still, frames[len(frames) // 2][None], self.fps, {})
        write_output(made.file, frames, self.fps, made.about)
        return made

    def _possible(self, frames: int, height: int, width: int) -> bool:
        try:
            self.pipeline.latent_grid(frames, height, width)
        except Refused:
            return False
        return True

    def _read_image(self, form: Form) -> tuple[np.ndarray | None, dict[str, Any]]:
        """The first frame, uint8 (height, width, 3), and what the files say of it; (None, {}) for a form without."""
        if form.image is None:
            return None, {}
        if not self.takes_image:
            raise Refused("this model begins with no given frame", got="a picture", fix="leave it out")
        assert form.height is not None and form.width is not None
        path, config = Path(form.image), self.pipeline.config
        try:
            size = form.height, form.width
            given, note = read_given(path, clip=config.clip, size=size, trained=config.get("given_frames"))
        except Refused as error:  # where the upload lies is of no use to who sent it
            raise Refused(str(error).replace(str(path), path.name)) from None
        return given.image, note

    def _about(self, form: Form, given: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
        """How a file was made, as `mmdit generate` writes it: all that it takes to make it again."""
        assert form.height is not None and form.width is not None
        assert form.seed is not None and form.steps is not None and form.guidance is not None
        labels = self.pipeline.labels
        wish = Wish(
            "", form.prompt if self.pipeline.has_text else None,
            labels.names[labels.id(form.label)] if form.label and labels else None,
            form.frames, size=(form.height, form.width),
        )  # fmt: skip
        return {
            **self.facts,
            **wish_note(self.pipeline, wish, 0, Sampling(form.seed, form.steps, form.guidance)),
            **given,
            **made_on(self.pipeline),
            "batch": [1, 0],
            "frames_sha256": frames_hash(frames),
        }


def takes_image(pipeline: ClipPipeline) -> bool:
    """Whether a pipeline can be given a first frame: it was trained with one, or with the first few."""
    return not {"first", "prefix"}.isdisjoint(pipeline.config.get("given_frames") or ())


def _check_filled(form: Form, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(form, name) is None:
            raise Refused(f"the {WORDS.get(name, name)} is empty", expected="a number")


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What the library warns of meanwhile (words it cannot read, prompts it cut)."""
    notes: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler, library = Keep(logging.WARNING), logging.getLogger("mmdit")
    library.addHandler(handler)
    try:
        yield notes
    finally:
        library.removeHandler(handler)


def _slug(words: str) -> str:
    """A few words for a file name, ASCII letters and digits only."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower())[:48].strip("-") or "clip"
