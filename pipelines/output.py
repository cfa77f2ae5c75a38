"""Clips as files that people open: mp4, gif, webp and png, each with a note of how it was made."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from mmdit import files
from mmdit.clips.video import read_metadata, write_clip
from mmdit.errors import Refused

FORMATS = ("mp4", "gif", "webp", "png")
KNOWN = "mp4, gif, webp or png"
OTHER_FORMATS = {".avi", ".bmp", ".jpeg", ".jpg", ".mkv", ".mov", ".mpg", ".webm"}
WEBP_QUALITY = 90
EXIF_DESCRIPTION = 0x010E


def write_output(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, Any]) -> None:
    """Writes frames (frame, height, width, 3) uint8 in the format of the suffix; the metadata goes in as a comment.

    mp4 is H.264 as browsers and phones play it. gif and webp loop. png is one picture: of several frames, all of them
    side by side.
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
        elif suffix == ".webp":
            pictures = [Image.fromarray(frame) for frame in frames]
            about = Image.Exif()
            about[EXIF_DESCRIPTION] = note
            pictures[0].save(
                part, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0,
                quality=WEBP_QUALITY, exif=about,
            )  # fmt: skip
        else:
            info = PngInfo()
            info.add_text("comment", note)
            Image.fromarray(np.concatenate(list(frames), axis=1)).save(part, "PNG", pnginfo=info)


def read_note(path: Path) -> dict[str, Any]:
    """The metadata that `write_output` left in a file; empty for files of other makers and damaged ones."""
    try:
        if path.suffix.lower() == ".mp4":
            return dict(read_metadata(path))
        with Image.open(path) as picture:
            text = picture.getexif().get(EXIF_DESCRIPTION) if picture.format == "WEBP" else picture.info.get("comment")
        note = json.loads(text or "{}")
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return {}
    return note if isinstance(note, dict) else {}


def read_frames(path: Path) -> np.ndarray:
    """The frames, uint8 (frame, height, width, 3), of a file that `write_output` wrote; of a png, one."""
    if path.suffix.lower() == ".mp4":
        import av

        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with Image.open(path) as picture:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])


def output_format(out: Path) -> str | None:
    """The format that a file name asks for; None for a folder.

    Raises Refused for the suffix of a format that is not written.
    """
    suffix = out.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise Refused("this format is not written", where=out, got=suffix, expected=f"{KNOWN}, or a folder")
    return suffix[1:] if suffix[1:] in FORMATS else None


def check_own(out: Path) -> None:
    """Refused where `out`, or FILE.json beside it, is a file that mmdit did not make: only its own are made anew.

    For folders, `check_writable` and the manifest say it.
    """
    if output_format(out) is None:
        return
    beside = out.with_name(f"{out.name}.json")
    for path, told in ((out, read_note), (beside, _read_beside)):
        if path.is_file() and "frames_sha256" not in told(path):
            raise Refused("the output is there already, and mmdit did not make it", where=path,
                          fix="name another --out, or remove it first")  # fmt: skip


def _read_beside(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def check_writable(out: Path, *, may_hold: str | None = None) -> None:
    """Refused where a file or folder of this name cannot be made; leaves nothing behind.

    Args:
        may_hold: a file; a folder that has it need not be empty.
    """
    try:
        going_on = may_hold is not None and (out / may_hold).is_file()
        used = out.is_dir() and not going_on and any(path.name != ".lock" for path in out.iterdir())
        if out.is_dir() and (output_format(out) or used):
            kind = "is a folder" if output_format(out) else "is not empty"
            raise Refused(f"the output {kind}", where=out, fix="name a new one")
        there = out.absolute().parent
        while not there.exists():
            there = there.parent
        # The probe's name is as long as the temporary name that the writing will use.
        probe = there / f"{files.PART}{os.getpid()}-{out.name}"
        probe.touch()
        probe.unlink()
    except Refused:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = str(out).replace("\0", "\\0")
        raise Refused("the output cannot be written", where=where, got=reason, fix="name another place") from None
