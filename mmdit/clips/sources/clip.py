"""What every source is turned into, and what a user may ask of one."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

from mmdit.clips.part import Part
from mmdit.errors import Refused

_VIDEO_NAMES = "3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
_IMAGE_NAMES = "bmp jpeg jpg png tif tiff webp"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO_NAMES.split())
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGE_NAMES.split())
OWN_COLUMNS = ("path", "caption", "label", "split", "start", "end")
DEFAULT_SPLIT = "train"

Kind = Literal["folder", "table", "webdataset", "datasets"]


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise Refused(f"unknown {what.replace('_', ' ')} of a source", got=repr(value), expected=", ".join(choices))


@dataclass(frozen=True, slots=True)
class SourceClip:
    """A span of one source video or image, and what is known about it.

    `path` is relative to the folder, with forward slashes; with the span it occurs once in a source. `start` and `end`
    are seconds from the first frame of the video; None is its beginning and its end. `attributes` are what else the
    source tells, as text. `part` says which bytes of which file hold the video; None: all of the file `path`.
    """

    path: str
    caption: str | None = None
    label: str | None = None
    split: str = DEFAULT_SPLIT
    attributes: dict[str, str] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    part: Part | None = None


@dataclass(frozen=True)
class SourceRules:
    """What to make of what a source holds."""

    media: Literal["all", "video", "image"] = "all"
    """What is taken from folders and tar files, by ending. A table's rows are taken as they are."""
    captions: Literal["given", "name"] = "given"
    """"name": a clip that is given no caption gets the words of its file name, with _ and - as spaces."""
    labels: Literal["given", "folder"] = "given"
    """"folder": the label is the first folder below the root that a file lies in."""
    label_names: tuple[str, ...] | None = None
    """The labels in the order of their numbers; None: classes.txt of the source, or else what its clips say."""
    bad_captions: Literal["refuse", "drop"] = "refuse"
    """A caption that is not UTF-8, or has a NUL: refused, or the clip goes without one, counted."""
    no_caption: Literal["keep", "skip", "refuse"] = "keep"
    """A clip without a caption: kept and counted, left out and counted, or refused."""
    max_caption: int | None = None
    """A longer caption is cut after so many characters, and counted; None: as long as it is."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if get_origin(field_.type) is Literal:
                check_choice(field_.name, getattr(self, field_.name), get_args(field_.type))
        if self.max_caption is not None and self.max_caption < 1:
            raise Refused("no room for a caption", got=self.max_caption, expected="1 character or more")

    def suffixes(self) -> frozenset[str]:
        """The endings that are taken, in lower case and with their dot."""
        by_media = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, "all": VIDEO_SUFFIXES | IMAGE_SUFFIXES}
        return by_media[self.media]


@dataclass(frozen=True)
class Found:
    """The clips of a source, sorted by path and start.

    `folder` is what paths are relative to. `labels` are the label names in the order of their numbers, empty when no
    clip has one. `notes` counts what a user should know of and what was left out; `first` names the first place of
    each note.
    """

    clips: list[SourceClip]
    labels: list[str]
    kind: Kind
    folder: Path
    notes: dict[str, int]
    first: dict[str, str]
