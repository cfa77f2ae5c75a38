"""Given frames from files: a photograph to begin or end with, a clip to go on with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.probe import Probed, ProbeRequest
from mmdit.clips.reader import ClipReader
from mmdit.errors import Refused
from mmdit.pipelines.given_frames import GivenFrames

SMALLEST = 8  # pixels a side; of a smaller picture nothing can be seen


def read_given(
    image: Path | None = None,
    last_image: Path | None = None,
    extend: Path | None = None,
    *,
    clip: dict[str, Any] | None,
    size: Sequence[int] | None = None,
    trained: Sequence[str] | None = None,
    force: bool = False,
) -> tuple[GivenFrames, dict[str, Any]]:
    """What the files give, and their names and sha256 for the metadata of what is made from them.

    Stills and videos are read in another process, which may fail or hang. Of a video as `image` it is the first frame;
    of `extend` it is the end, at most as long as the training clips, at their rate and true speed.

    Args:
        clip: {"frames", "size": [height, width], "fps"} of the training clips.
        size: (height, width) that is made, where it is not that.
        trained: the kinds of given frames that the network was trained with. force: any will do.

    Raises:
        Refused: no such file, one that cannot be read or is tiny, an image and a clip to begin with, or a network that
            was not trained with given frames.
    """
    asked = {"image": image, "last_image": last_image, "extend": extend}
    paths = {name: Path(path) for name, path in asked.items() if path is not None}
    if not paths:
        return GivenFrames(), {}
    if image is not None and extend is not None:
        raise Refused("a clip begins with one of them", got="--image and --extend", fix="leave one out")
    if not trained and not force:
        raise Refused(
            "this model was not trained with given frames", got=" and ".join(map(str, paths.values())),
            expected="none", fix="train with conditions.given_frames, or insist with --force-given",
        )  # fmt: skip
    for path in paths.values():
        if not path.is_file():
            raise Refused("no such file", where=path, expected="a picture or a video")
    about = clip or {"frames": 16, "fps": 8}
    with ClipReader(workers=1) as reader:
        read = {name: _read(reader, path, name, about, size or about.get("size")) for name, path in paths.items()}
    files = {name: {"file": path.name, "sha256": _sha256(path)} for name, path in paths.items()}
    one = {name: frames[0] for name, frames in read.items() if name != "extend"}
    return GivenFrames(one.get("image"), one.get("last_image"), read.get("extend")), {"given": files}


def _read(
    reader: ClipReader, path: Path, name: str, clip: dict[str, Any], size: Sequence[int] | None
) -> np.ndarray[Any, Any]:
    """uint8 (frame, height, width, 3)."""
    place = str(path.resolve())
    (found,) = reader.read_many([ProbeRequest(place)])
    if isinstance(found, BadClip):
        raise Refused("not a picture or video that can be read", where=path, got=found)
    if min(found.size) < SMALLEST:
        got, expected = f"{found.size[0]}x{found.size[1]}", f"at least {SMALLEST} pixels a side"
        raise Refused("too small to go on from", where=path, got=got, expected=expected)
    height, width = size or found.size
    start, count = _end(found, clip) if name == "extend" else (None, 1)
    (decoded,) = reader.read_many([ReadRequest(place, count, (height, width), clip["fps"], start)])
    if not isinstance(decoded, Decoded):
        raise Refused("not a picture or video that can be read", where=path, got=decoded)
    return decoded.frames


def _end(found: Probed, clip: dict[str, Any]) -> tuple[float | None, int]:
    """(second, number of frames) of the last so many frames of a video, at the rate of the training clips."""
    if found.kind == "image":
        return None, 1
    last = found.duration - 1 / (found.fps or clip["fps"])  # when the last frame is shown
    count = max(1, min(clip["frames"], int(last * clip["fps"] + 1e-3) + 1))
    return max(0.0, last - (count - 1) / clip["fps"]), count


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
