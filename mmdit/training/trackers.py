"""Metrics and samples for TensorBoard, and for the other trackers that accelerate knows, where a recipe names them."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from mmdit import files
from mmdit.errors import Refused
from mmdit.training.run import Run

log = logging.getLogger("mmdit.training")

PROJECT = "mmdit"
MOST_FRAMES = 8  # of a clip, in a picture


class TrackersOfRun:
    """The trackers of one run, on its main process; on the others there are none.

    A tracker that fails is left out from then on, with a line in the log: the training goes on.
    """

    def __init__(self, trackers: list[Any]) -> None:
        self._trackers = trackers

    def log(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl; those of a table as "table/key"."""
        values = {name: value for name, value in _flat(line) if value is not None and name != "step"}
        self._each(lambda tracker: tracker.log(values, step=line["step"]))

    def show(self, clips: Mapping[str, np.ndarray], step: int) -> None:
        """Clips by name, each (frame, height, width, 3) uint8, as pictures of some of their frames side by side."""
        pictures = {f"samples/{name}": frames_side_by_side(clip)[None] for name, clip in clips.items()}

        def show(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=step, **layout)

        self._each(show)

    def finish(self) -> None:
        """Ends the trackers alone: accelerate's own `end_training` may end the processes' group too."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Any], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # a service that cannot be reached, a full disk: whatever it may be
                self._trackers.remove(tracker)
                log.warning("the tracker %s fails, and is left out from now on: %s", tracker.name, _first_line(error))


@contextmanager
def open_trackers(run: Run) -> Iterator[TrackersOfRun]:
    """The trackers of the recipe, for the steps that are left; a run that is resumed goes on in the same TensorBoard
    log, without what it had told of the steps that are done again, and in the same run of W&B.

    Raises:
        Refused: on all processes, where a tracker is not installed or does not start.
    """
    names = run.config.trackers if run.step < run.config.steps else ()
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in installed:
            raise Refused(
                "the tracker is not installed", got=f"trackers: {name}", expected=f"of {', '.join(sorted(installed))}",
                fix=f"pip install {name}, or leave it out",
            )  # fmt: skip
    started, refusal = TrackersOfRun([]), None
    if run.accelerator.is_main_process and names:
        try:
            started = _start(run, list(names))
        except Exception as error:  # they raise errors of their own
            refusal = Refused("a tracker does not start", got=_first_line(error), fix="set it up, or leave it out")
    (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise refusal
    try:
        yield started
    finally:
        started.finish()


def _start(run: Run, names: list[str]) -> TrackersOfRun:
    folder = run.folder / "trackers"
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = run.accelerator
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = names
    options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": run.step + 1}}
    if "wandb" in names:
        here = {"dir": str(folder), "name": run.folder.name, "config": run.config.model_dump(mode="json")}
        options["wandb"] = {"id": _run_id(folder / "run_id.txt"), "resume": "allow", **here}
    accelerator.init_trackers(PROJECT, init_kwargs=options)
    return TrackersOfRun(list(accelerator.trackers))


def _run_id(path: Path) -> str:
    """A name that no other run has, kept for when this one is resumed."""
    if not path.is_file():
        files.write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def frames_side_by_side(clip: np.ndarray) -> np.ndarray:
    """(height, n width, 3): n frames of (frame, height, width, 3), evenly spread from the first to the last."""
    chosen = np.linspace(0, len(clip) - 1, min(len(clip), MOST_FRAMES)).round().astype(int)
    return np.concatenate(list(clip[chosen]), axis=1)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", inner) for key, inner in _flat(value))
        else:
            yield name, value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
