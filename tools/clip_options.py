"""The options of `encode` and `plan` that say which clips are cut from which sources."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmdit.clips.windows import Windows
    from mmdit.latents.request import ClipRules

Codec = Annotated[str, typer.Option(help="A codec that comes with mmdit, a folder, or a hub name.")]
Frames = Annotated[int, typer.Option(help="Frames a clip.")]
Size = Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")]
Buckets = Annotated[
    list[str] | None,
    typer.Option("--bucket", help="FRAMESxHEIGHTxWIDTH, any number of them, in place of --frames and --size."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--token-budget", help="Derive sizes from the sources: at most so many 2x2 latent patches a clip."),
]
Fps = Annotated[float, typer.Option(help="Frames a second; the speed stays true.")]
Stride = Annotated[int | None, typer.Option(help="Take every so-many-th frame of the source instead of going by time.")]
WindowsOption = Annotated[
    str, typer.Option("--windows", help="Clips a video: 1 (its beginning), a number (spread evenly), or all.")
]
WindowStep = Annotated[
    float | None, typer.Option(help="With --windows all: seconds between beginnings. [default: a clip's length]")
]
Flip = Annotated[bool, typer.Option("--flip", help="Each clip also mirrored, as a clip of its own.")]
Batch = Annotated[int, typer.Option(help="Clips encoded at a time.")]
Workers = Annotated[int | None, typer.Option(help="Decoding processes. [default: one less than processors]")]
Deadline = Annotated[float, typer.Option(help="Seconds that decoding one clip may take.")]
Dtype = Annotated[str, typer.Option(help="How latents are stored: float16, bfloat16 or float32.")]


def rules_of(
    *,
    frames: int,
    size: str,
    bucket: list[str] | None,
    token_budget: int | None,
    fps: float,
    stride: int | None,
    windows: str,
    window_step: float | None,
    flip: bool,
    reader: str,
) -> "ClipRules":
    """The options as rules; Refused where they do not make sense."""
    from mmdit.clips.buckets import Bucket
    from mmdit.errors import Refused
    from mmdit.latents.request import ClipRules, TokenBudget

    if bucket and token_budget is not None:
        raise Refused("both buckets and a token budget", got="--bucket and --token-budget", expected="one of them")
    buckets = tuple(map(Bucket.parse, bucket)) if bucket else (Bucket(frames, *_size(size)),)
    budget = TokenBudget((frames,), token_budget) if token_budget is not None else None
    return ClipRules(
        buckets=() if budget else buckets, budget=budget, fps=fps, stride=stride,
        windows=_windows(windows, window_step), flip=flip, reader=reader,
    )  # type: ignore[arg-type]  # fmt: skip


def _windows(text: str, step: float | None) -> "Windows":
    from mmdit.clips.windows import Windows
    from mmdit.errors import Refused

    if not re.fullmatch(r"all|[1-9]\d{0,5}", text):
        raise Refused("not a number of windows", got=repr(text), expected="1, 2, 3, ... or all")
    return Windows(None if text == "all" else int(text), step)


def _size(text: str) -> tuple[int, int]:
    from mmdit.errors import Refused

    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise Refused("not a size", got=repr(text), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])
