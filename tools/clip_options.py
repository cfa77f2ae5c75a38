"""The options of `encode` and `plan` that say which clips are cut from which sources."""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mmdit.clips.decode import ReaderName
    from mmdit.clips.source import Found
    from mmdit.clips.windows import Windows
    from mmdit.latents.request import ClipRules

Source = Annotated[
    Path,
    typer.Argument(help="A folder of videos and images, a table (csv, jsonl, parquet), tar files, a saved data set."),
]


def _read_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes what the file says the defaults of the other options."""
    from mmdit.config import read_yaml
    from mmdit.errors import Refused

    if path is None:
        return None
    values = {name.replace("-", "_"): value for name, value in read_yaml(path).items()}
    known = {parameter.name for parameter in context.command.params} - {"recipe", "source", "out"}
    if unknown := sorted(set(values) - known):
        near = difflib.get_close_matches(unknown[0], [name for name in known if name], n=1)
        raise Refused(
            "no such option", where=path, got=unknown[0], fix=f"did you mean {near[0]}?" if near else "see --help"
        )
    context.default_map = values
    return path


Recipe = Annotated[
    Path | None,
    typer.Option(
        callback=_read_recipe, is_eager=True, help="A YAML file with options by name, such as bucket: [17x64x48]."
    ),
]
Kind = Annotated[
    Literal["folder", "table", "webdataset", "datasets"] | None,
    typer.Option(help="What the source is. [default: found out by looking at it]"),
]
Captions = Annotated[
    Path | None, typer.Option(help="A table of captions. [default: captions.csv, .jsonl or .parquet in the folder]")
]
CaptionFrom = Annotated[
    Literal["given", "name"], typer.Option(help="name: clips without a caption get the words of their file name.")
]
LabelFrom = Annotated[
    Literal["given", "folder"], typer.Option("--labels", help="folder: the first folder below the source is the label.")
]
LabelNames = Annotated[
    Path | None,
    typer.Option(help="A file with a label name a line, in the order of their numbers. [default: classes.txt]"),
]
NoCaption = Annotated[Literal["keep", "skip", "refuse"], typer.Option(help="What becomes of clips without a caption.")]
BadCaptions = Annotated[
    Literal["refuse", "drop"], typer.Option(help="What becomes of captions that are no text: not UTF-8, or with NUL.")
]
MaxCaption = Annotated[int | None, typer.Option(help="Cut captions after so many characters.")]

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
Reader = Annotated[Literal["pyav", "decord"], typer.Option(help="pyav, or decord where it agrees with the container.")]
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
    reader: "ReaderName",
) -> "ClipRules":
    """The options as rules; Refused where they do not make sense."""
    from mmdit.clips.buckets import Bucket
    from mmdit.errors import Refused
    from mmdit.latents.request import ClipRules, TokenBudget

    if bucket and token_budget is not None:
        raise Refused("both buckets and a token budget", got="--bucket and --token-budget", expected="one of them")
    buckets = tuple(map(Bucket.parse, bucket)) if bucket else (Bucket(frames, *size_of(size)),)
    budget = TokenBudget((frames,), token_budget) if token_budget is not None else None
    return ClipRules(
        buckets=() if budget else buckets, budget=budget, fps=fps, stride=stride,
        windows=_windows(windows, window_step), flip=flip, reader=reader,
    )  # fmt: skip


def _windows(text: str, step: float | None) -> "Windows":
    from mmdit.clips.windows import Windows
    from mmdit.errors import Refused

    if not re.fullmatch(r"all|[1-9]\d{0,5}", text):
        raise Refused("not a number of windows", got=repr(text), expected="1, 2, 3, ... or all")
    return Windows(None if text == "all" else int(text), step)


def size_of(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH."""
    from mmdit.errors import Refused

    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise Refused("not a size", got=repr(text), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])


def source_of(
    source: Path,
    rules: "ClipRules",
    *,
    kind: str | None,
    captions: Path | None,
    caption_from: str,
    labels: str,
    label_names: Path | None,
    no_caption: str,
    bad_captions: str,
    max_caption: int | None,
) -> "Found":
    """The clips of the source; images are taken where a bucket has one frame."""
    from mmdit.clips.source import SourceRules, find_source
    from mmdit.clips.sources.labels import read_classes
    from mmdit.errors import Refused

    lengths = rules.budget.frames if rules.budget is not None else [bucket.frames for bucket in rules.buckets]
    media = {True: "all", False: "video"}[1 in lengths]
    names = None
    if label_names is not None and (names := read_classes(label_names)) is None:
        raise Refused("no such file of label names", where=label_names)
    how = SourceRules(media, caption_from, labels, names and tuple(names), bad_captions, no_caption, max_caption)  # type: ignore[arg-type]
    return find_source(source, kind=kind, table=captions, rules=how)  # type: ignore[arg-type]


def print_notes(found: "Found") -> None:
    """What was left out or changed while the source was listed, a line each."""
    for what, count in found.notes.items():
        typer.echo(f"{what}: {count}, the first: {found.first[what]}")


def tiling_of(text: str) -> bool | int:
    """off, on, or a side in pixels."""
    from mmdit.errors import Refused

    if text in ("on", "off"):
        return text == "on"
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise Refused("not a tiling", got=repr(text), expected="off, on, or the side of a tile in pixels")
    return int(text)


def device_of(name: str) -> str:
    """The device that a name stands for; auto is the accelerator, where there is one."""
    import torch

    if name != "auto":
        return name
    return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
