"""What decoding is asked for, and what it answers."""

from dataclasses import dataclass
from typing import Literal

from mmdit.clips.shape import Frames

ReaderName = Literal["pyav", "decord"]


@dataclass(frozen=True)
class ReadRequest:
    """What one clip is read from and how, as one value that travels to another process.

    Bytes [`offset`, `offset` + `length`) of the file `path` hold the video or still, by default all of them. `frames`
    frames are read at `size` (height, width), from second `start` (by default the beginning) on, none after second
    `end`. Frame i is the one a viewer sees at start + i / `fps`: true speed, also for variable frame rates. With a
    `stride` it is the (i x stride)-th frame after the one at `start` instead, and `fps` only says what the clip is
    played at. `flip` mirrors it left to right.
    """

    path: str
    frames: int
    size: tuple[int, int]
    fps: float
    start: float | None = None
    end: float | None = None
    reader: ReaderName = "pyav"
    offset: int = 0
    length: int | None = None
    flip: bool = False
    stride: int | None = None


@dataclass(frozen=True)
class Decoded:
    """A decoded clip: uint8 `frames` (frame, height, width, 3) at `fps`, and what its source was.

    `start` and `end` are the times of its first and last frame in seconds from the first frame of the source, and
    `speed` is how many seconds of the source a second of the clip shows: 1 but where a stride was asked for.
    `source_frames` is the number of frames counted, or what the header says where counting stopped early, or None.
    `source_size` is (height, width) as stored, before rotation and pixel aspect.
    """

    frames: Frames
    fps: float
    start: float
    end: float
    speed: float
    source_frames: int | None
    source_fps: float | None
    source_size: tuple[int, int]
    reader: Literal["pyav", "decord", "pillow"]
