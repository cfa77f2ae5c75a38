"""The options of `encode` and `plan` that say which clips are cut from which sources."""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mmdit.clips.source import Found

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


def print_notes(found: "Found") -> None:
    """What was left out or changed while the source was listed, a line each."""
    for what, count in found.notes.items():
        typer.echo(f"{what}: {count}, the first: {found.first[what]}")


def tiling_of(text: str) -> bool | int:
    """off, on, or a side in pixels. In a YAML file, off and on are False and True."""
    from mmdit.errors import Refused

    if text in ("on", "off", "True", "False"):
        return text in ("on", "True")
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise Refused("not a tiling", got=repr(text), expected="off, on, or the side of a tile in pixels")
    return int(text)


def device_of(name: str) -> str:
    """The device that a name stands for; auto is the accelerator, where there is one.

    Raises Refused for one that this machine does not have.
    """
    import torch

    from mmdit.errors import Refused

    if name == "auto":
        return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a torch without CUDA
        reason = (str(error).splitlines() or ["it cannot be used"])[0]
        got = name if "device string" in reason else f"{name} ({reason})"  # torch lists all that it has ever known
        raise Refused("no such device here", where="--device", got=got, expected="auto, cpu, cuda, cuda:1, mps, ...",
                      fix="say --device cpu, or leave it out") from None  # fmt: skip
    return name
