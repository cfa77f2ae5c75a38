"""Stills (jpg, png, webp, bmp, tif) through Pillow, which is imported when the first one is read."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from mmdit.clips.container import check_pixels
from mmdit.clips.shape import Frames, on_white
from mmdit.clips.window import BadClip, Window

if TYPE_CHECKING:
    from PIL.Image import Image

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_QUARTER_TURNED = (5, 6, 7, 8)  # values of the EXIF orientation
_ORIENTATION = 0x0112


def is_still(path: str, offset: int = 0, length: int | None = None) -> bool:
    """Whether the bytes begin as one of the known kinds of stills do; the name does not matter."""
    with Window(path, offset, length) as file:
        head = file.read(12) or b""
    return head.startswith(_BEGINNINGS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def still_size(path: str, offset: int = 0, length: int | None = None) -> tuple[int, int]:
    """(height, width) as shown, from the header."""
    with _opened(path, offset, length) as image:
        turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def read_still(path: str, offset: int = 0, length: int | None = None) -> tuple[Frames, tuple[int, int]]:
    """The picture, RGB (height, width, 3) as shown, and its (height, width) as stored.

    It is turned as EXIF says and put on white where it has alpha. Gray and CMYK become RGB, 16 bits become 8. Of a tif
    file with several pages it is the first.

    Raises:
        BadClip: damaged, larger than `container.MAX_PIXELS` by its header, animated, or pixels of another kind.
    """
    from PIL import ImageOps

    with _opened(path, offset, length) as image:
        stored = (image.height, image.width)
        return as_rgb(ImageOps.exif_transpose(image)), stored


@contextmanager
def _opened(path: str, offset: int, length: int | None) -> "Iterator[Image]":
    from PIL import Image

    with Window(path, offset, length) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit is lower, and damaged EXIF says nothing about the pixels
        try:
            with Image.open(cast(IO[bytes], file), formats=_FORMATS) as image:
                check_pixels(image.height, image.width)
                if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                    raise BadClip(f"an animated {image.format.lower()}: only single pictures are read")
                yield image
        except Image.DecompressionBombError:
            raise BadClip("too large: its header says so") from None
        except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error) as error:
            detail = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"  # that one prints paths
            raise BadClip(f"damaged: the image does not decode{' '.join(detail.split())[:200]}") from None


def as_rgb(image: "Image") -> Frames:
    """uint8 (height, width, 3) of a PIL image; BadClip for one of 32 bits, of which nobody says what is white."""
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 becomes 255
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadClip(f"pixels of kind {image.mode}: only 8 and 16 bits are read")
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
