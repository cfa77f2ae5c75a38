"""Clips as files that people open: mp4, gif and png, each with a note of how it was made."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmdit import files
from mmdit.clips.video import write_clip
from mmdit.errors import Refused

FORMATS = ("mp4", "gif", "png")
OTHER_FORMATS = {".avi", ".bmp", ".jpeg", ".jpg", ".mkv", ".mov", ".mpg", ".webm", ".webp"}


def write_output(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, Any]) -> None:
    """Writes frames (frame, height, width, 3) uint8 in the format of the suffix; the metadata goes in as a comment.

    mp4 is H.264. gif loops. png is one picture: of several frames, all of them side by side.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_clip(path, frames, fps, metadata=metadata)
        return
    note = json.dumps(metadata, sort_keys=True, ensure_ascii=True)
    with files.new_file(path, durable=False) as part:
        if suffix == ".gif":
            pictures = [Image.fromarray(frame) for frame in frames]
            delay = max(20, round(100 / fps) * 10)  # gif counts in hundredths of a second
            pictures[0].save(
                part, "GIF", save_all=True, append_images=pictures[1:], duration=delay, loop=0, comment=note.encode()
            )
        else:
            info = PngInfo()
            info.add_text("comment", note)
            Image.fromarray(np.concatenate(list(frames), axis=1)).save(part, "PNG", pnginfo=info)


def output_format(out: Path) -> str | None:
    """The format that a file name asks for; None for a folder.

    Raises Refused for the suffix of a format that is not written.
    """
    suffix = out.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise Refused("this format is not written", where=out, got=suffix, expected="mp4, gif or png, or a folder")
    return suffix[1:] if suffix[1:] in FORMATS else None


def check_writable(out: Path) -> None:
    """Refused where a file or folder of this name cannot be made; leaves nothing behind."""
    try:
        if out.is_dir() and (output_format(out) or any(out.iterdir())):
            kind = "is a folder" if output_format(out) else "is not empty"
            raise Refused(f"the output {kind}", where=out, fix="name a new one")
        there = out.absolute().parent
        while not there.exists():
            there = there.parent
        # The probe's name is as long as the temporary name that the writing will use.
        probe = there / f"{files.PART}{os.getpid()}-{out.name}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = str(out).replace("\0", "\\0")
        raise Refused("the output cannot be written", where=where, got=reason, fix="name another place") from None
