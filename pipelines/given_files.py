"""Given frames from files: a photograph to begin or end with, a clip to go on with."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.probe import Probed, ProbeRequest
from mmdit.clips.reader import ClipReader
from mmdit.errors import Refused
from mmdit.pipelines.given_frames import GivenFrames, plan_held
from mmdit.pipelines.loading import Source
from mmdit.pipelines.source_sizes import source_rules
from mmdit.pipelines.windows import plan_windows

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
    """What the files give, and for the metadata of what is made from them {"given": by option the name, the sha256 and
    the "HEIGHTxWIDTH" that it was read at; None without any}.

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
        return GivenFrames(), {"given": None}
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
    files = {
        name: {"file": path.name, "sha256": sha256_of(path), "size": "x".join(map(str, read[name].shape[1:3]))}
        for name, path in paths.items()
    }
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


def check_given(
    given: GivenFrames,
    source: Source,
    sizes: Iterable[tuple[int | None, tuple[int, int] | None]],
    *,
    codec: str | None = None,
    force: bool = False,
) -> None:
    """Refused, before weights are loaded, where clips of one of these sizes cannot be made with what is given.

    Args:
        sizes: (frames, (height, width)) that the network and the codec allow; None for those of the training clips.
    """
    if source.clip is None:
        return
    network, rules = source_rules(source, codec)
    patch, trained = network["patch_size"][0], source.clip["frames"]
    for frames, size in dict.fromkeys(sizes):
        frames = trained if frames is None else frames
        grid = rules.latent_size((frames, *(size or source.clip["size"])))
        kinds = None if force else source.given_frames
        windows = plan_windows(rules, patch, frames, grid, trained, window=None, overlap=None, kinds=kinds)
        plan_held(given, rules, patch, windows, conditions=1, overlap=None, trained=source.given_frames, force=force)


def check_not_given(out: Path, *paths: Path | None) -> None:
    """Refused where the output would take the place of a file that it is made from."""
    for path in paths:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise Refused("the output is what it is made from", where=out, fix="name another --out")


def find_given(
    note: dict[str, Any], file: Path, noted: dict[str, str], moved: dict[str, Path | None]
) -> dict[str, Path]:
    """The files, by option, that a generated `file` was made from, as its note says.

    Args:
        noted: where they lay. moved: where they lie now, if anybody says so; else they may lie beside `file` as well.

    Raises Refused for one that is not there, is another now, or that the file was not made from.
    """
    given = note.get("given") or {}
    for name, path in moved.items():
        if path is not None and name not in given:
            raise Refused("the file was not made from this", where=file, got=f"{_option(name)} {path}",
                          expected=" and ".join(map(_option, given)) or "no given frames")  # fmt: skip
    found = {}
    for name, about in given.items():
        path = moved.get(name)
        tried = [path] if path else [Path(at) for at in (noted.get(name), file.with_name(about["file"])) if at]
        there = next((one for one in tried if one.is_file()), None)
        if there is None:
            raise Refused("what the file was made from is not there", where=tried[0], expected=about["file"],
                          fix=f"say where it lies now: {_option(name)}")  # fmt: skip
        if (sha256 := sha256_of(there)) != about["sha256"]:
            raise Refused("not what the file was made from, or changed since", where=there,
                          got=f"sha256 {sha256[:16]}", expected=about["sha256"][:16],
                          fix=f"say where the right one lies: {_option(name)}")  # fmt: skip
        found[name] = there
    return found


def places_of(image: Path | None, last_image: Path | None, extend: Path | None) -> dict[str, Any]:
    """Where the files lie, for `find_given`; nothing without any."""
    asked = {"image": image, "last_image": last_image, "extend": extend}
    found = {name: str(path.resolve()) for name, path in asked.items() if path is not None}
    return {"given_from": found} if found else {}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
