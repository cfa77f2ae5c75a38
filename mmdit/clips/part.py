"""Where a video lies that is not a file of its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [offset, offset + size) of a file hold a video or an image, as it would be in a file of its own.

    `file` is relative to the folder of the source, with forward slashes.
    """

    file: str
    offset: int
    size: int
