"""`mmdit encode`: a folder of videos into a latent store."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmdit.tools.cli import run, words_given

if TYPE_CHECKING:
    from mmdit.latents.encode import EncodeReport


def main(
    folder: Annotated[Path, typer.Argument(help="Videos, with captions.csv or with NAME.txt beside NAME.mp4.")],
    out: Annotated[Path, typer.Option(help="The store: a new folder, or one that this command began.")],
    codec: Annotated[str, typer.Option(help="A codec that comes with mmdit, a folder, or a hub name.")] = "fashion",
    frames: Annotated[int, typer.Option(help="Frames a clip.")] = 17,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "64x48",
    fps: Annotated[float, typer.Option(help="Frames a second; the speed stays true.")] = 8.0,
    captions: Annotated[Path | None, typer.Option(help="A CSV file. [default: captions.csv in the folder]")] = None,
    max_skipped: Annotated[
        str, typer.Option(help="Clips that may be skipped: a number, or a share such as 5%.")
    ] = "5%",
    batch: Annotated[int, typer.Option(help="Clips encoded at a time.")] = 16,
    shard: Annotated[int, typer.Option(help="Clips a file; so many are done again after an interruption.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Decoding processes. [default: one less than processors]")] = None,
    deadline: Annotated[float, typer.Option(help="Seconds that decoding one clip may take.")] = 60.0,
    dtype: Annotated[str, typer.Option(help="How latents are stored: float16, bfloat16 or float32.")] = "float16",
    psnr_every: Annotated[int, typer.Option(help="Measure the reconstruction of one clip in so many; 0: none.")] = 16,
    reader: Annotated[
        Literal["pyav", "decord"], typer.Option(help="pyav, or decord where it agrees with the container.")
    ] = "pyav",
    retry_skipped: Annotated[bool, typer.Option("--retry-skipped", help="Read again what was skipped before.")] = False,
    text_encoder: Annotated[
        str | None, typer.Option(help="Embed the captions as well: the folder or hub name of a text encoder.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
) -> None:
    """Encodes a folder of videos into a latent store.

    One clip is taken from each video: its beginning, or from the second in the column `start` of captions.csv on. Run
    the same command again to go on after an interruption, or to add new videos.

    Example:
      mmdit encode my_videos --out stores/mine --frames 17 --size 64x48 --fps 8
    """
    from mmdit.errors import Refused

    # What can be refused without a codec is refused before one is loaded.
    allowed, height_width = _skip_budget(max_skipped), _size(size)
    if not deadline > 0:
        raise Refused("the deadline is out of range", got=deadline, expected="more than 0 seconds")
    from mmdit.clips.source import find_clips

    find_clips(folder, captions)
    import torch

    from mmdit.conditioning import load_text_encoder
    from mmdit.latents.codec import load_codec
    from mmdit.latents.encode import TooManySkipped, encode_folder
    from mmdit.latents.texts import encode_texts
    from mmdit.tools.progress import progress_line

    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    loaded = load_codec(codec, device=device)
    words = load_text_encoder(text_encoder, device=device) if text_encoder is not None else None
    try:
        with progress_line("encode", "clips") as advance:
            report = encode_folder(
                folder, out, loaded, frames=frames, size=height_width, fps=fps, captions=captions, batch_size=batch,
                shard_size=shard, workers=workers, max_skipped=allowed, dtype=dtype, psnr_every=psnr_every,
                deadline=deadline, reader=reader, codec_name=codec, retry_skipped=retry_skipped,
                command=words_given() or None,
                progress=lambda done, total, skipped: advance(done, total, f"skipped {skipped}"),
            )  # fmt: skip
    except TooManySkipped as error:
        _print(error.report)
        raise
    _print(report)
    if words is not None:
        print(f"text embeddings: {encode_texts(out, words)}")


def _size(text: str) -> tuple[int, int]:
    from mmdit.errors import Refused

    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise Refused("not a size", got=repr(text), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])


def _skip_budget(text: str) -> int | float:
    """A number of clips, or a share of all."""
    from mmdit.errors import Refused

    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
    if match is None or (match[2] and float(match[2]) > 100):
        raise Refused("not a skip budget", got=repr(text), expected="a number of clips, or a share such as 5%")
    return int(match[1]) if match[1] else float(match[2]) / 100


def _print(report: "EncodeReport") -> None:
    """What became of the clips, as a short table."""
    from rich.console import Console
    from rich.table import Table

    rate = f", {report.encoded / report.seconds:.1f} clips/s" if report.encoded else ""
    rows = [
        ("kept", report.kept, ""),
        ("encoded just now", report.encoded, f"{report.seconds:.1f} s{rate}"),
        *((f"skipped: {reason}", count, "quarantine.parquet says more") for reason, count in report.reasons.items()),
    ]
    if report.same_content:
        rows.append(("with the content of another clip", report.same_content, "kept; they share one latent"))
    if report.without_caption:
        rows.append(("without a caption", report.without_caption, "kept; training on text needs one each"))
    if report.unused:
        rows.append(("latents no longer used", report.unused, "their videos are gone"))
    table = Table("clips", "", "", show_header=False, box=None, pad_edge=False)
    for name, count, words in rows:
        table.add_row(name, str(count), words)
    console = Console(highlight=False)
    console.print(table)
    if report.psnr is not None:
        console.print(f"reconstruction: {report.psnr:.1f} dB PSNR on the sampled clips")
    console.print(f"store: {report.store}", soft_wrap=True)


if __name__ == "__main__":
    run(main)
