"""One made clip from its description to its frames and its file. Imports no torch: worker processes start with it."""

import multiprocessing
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit.clips.backdrop import backdrop
from mmdit.clips.canvas import Canvas
from mmdit.clips.figure import draw
from mmdit.clips.pose import Stage, pose
from mmdit.clips.video import Frames, write_clip

# numbers in [0, 1) that make each clip its own: when and where it is, how it is lit, who is seen
LOOK = (
    "phase", "tempo", "place", "angle", "side", "tall", "low", "scene", "brightness", "light", "lamp",
    "style", "fringe", "hair", "skin", "shoe", "neutral", "fold",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What a clip shows, and the format it is shown in."""

    garment: str
    colour: str
    pattern: str
    motion: str
    background: str
    look: tuple[float, ...]
    size: tuple[int, int]  # height, width
    frames: int
    fps: float

    def render(self) -> Frames:
        """The frames, uint8 (frame, height, width, 3)."""
        height, width = self.size
        look = dict(zip(LOOK, self.look, strict=True))
        look["scale"] = min(0.83 + 0.05 * look["tall"], 1.25 * width / height)  # figure heights per frame height
        look["floor"] = 0.935 + 0.015 * look["low"]
        look["tempo"] = 0.88 + 0.24 * look["tempo"]
        progress = np.linspace(0.0, 1.0, self.frames) if self.frames > 1 else np.asarray([0.5])
        stage = Stage(
            height, width, progress.astype(np.float32), (np.arange(self.frames) / self.fps).astype(np.float32)
        )
        figure = pose(self.motion, stage, look)
        light = (1.5 * (look["light"] - 0.5), 0.3 + 0.3 * look["lamp"], 0.75)
        canvas = Canvas(backdrop(self.background, stage, figure.pan.astype(np.float32), look), light)
        draw(canvas, figure, self.garment, self.colour, self.pattern, look)
        return canvas.result()


def film(job: tuple[Path, Scene, dict[str, str]]) -> None:
    """Renders a scene into an mp4 file with the given metadata."""
    path, scene, metadata = job
    write_clip(path, scene.render(), scene.fps, metadata=metadata)


def end_with_parent() -> None:
    """In a worker: ends it when the process that it works for has ended, even by kill -9."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
