"""`mmdit encode`: videos and images into a latent store."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmdit.tools import clip_options as options
from mmdit.tools.cli import run, words_given

if TYPE_CHECKING:
    from mmdit.latents.codec import Codec
    from mmdit.latents.encode import Engine
    from mmdit.latents.report import EncodeReport


def main(
    source: options.Source,
    out: Annotated[Path, typer.Option(help="The store: a new folder, or one that this command began.")],
    recipe: options.Recipe = None,
    codec: options.Codec = "fashion",
    frames: options.Frames = 17,
    size: options.Size = "64x48",
    bucket: options.Buckets = None,
    token_budget: options.Tokens = None,
    fps: options.Fps = 8.0,
    stride: options.Stride = None,
    windows: options.WindowsOption = "1",
    window_step: options.WindowStep = None,
    flip: options.Flip = False,
    kind: options.Kind = None,
    captions: options.Captions = None,
    caption_from: options.CaptionFrom = "given",
    labels: options.LabelFrom = "given",
    label_names: options.LabelNames = None,
    no_caption: options.NoCaption = "keep",
    bad_captions: options.BadCaptions = "refuse",
    max_caption: options.MaxCaption = None,
    max_skipped: Annotated[
        str, typer.Option(help="Clips that may be skipped: a number, or a share such as 5%.")
    ] = "5%",
    batch: options.Batch = 16,
    shard: Annotated[int, typer.Option(help="Clips a file; so many are done again after an interruption.")] = 256,
    workers: options.Workers = None,
    deadline: options.Deadline = 60.0,
    dtype: options.Dtype = "float16",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="What the codec computes in.")
    ] = "float32",
    tiling: Annotated[
        str, typer.Option(help="off, on, or the side of a tile in pixels: large pictures in less memory.")
    ] = "off",
    psnr_every: Annotated[int, typer.Option(help="Measure the reconstruction of one clip in so many; 0: none.")] = 16,
    psnr_floor: Annotated[
        float | None, typer.Option(help="dB. A codec below it is refused, a measured clip below it skipped.")
    ] = None,
    reader: options.Reader = "pyav",
    retry_skipped: Annotated[bool, typer.Option("--retry-skipped", help="Read again what was skipped before.")] = False,
    text_encoder: Annotated[
        str | None, typer.Option(help="Embed the captions as well: the folder or hub name of a text encoder.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    engine: Annotated[
        Literal["here", "ray"], typer.Option(help="ray: on the cluster of RAY_ADDRESS, else on one started here.")
    ] = "here",
    processes: Annotated[int, typer.Option(help="Encoding processes of --engine ray.")] = 1,
) -> None:
    """Encodes videos and images into a latent store.

    Run the same command again to go on after an interruption, or to add new videos. Started by torchrun or accelerate
    launch, all processes work on the one store.

    Example:
      mmdit encode my_videos --out stores/mine --frames 17 --size 64x48 --fps 8
      torchrun --nproc-per-node 8 tools/encode.py my_videos --out stores/mine --bucket 17x256x256 --bucket 1x256x256
    """
    from mmdit.errors import Refused

    # What can be refused without a codec is refused before one is loaded.
    from mmdit.latents.options import rules_of, source_of

    rules = rules_of(
        frames=frames, size=size, bucket=bucket, token_budget=token_budget, fps=fps, stride=stride, windows=windows,
        window_step=window_step, flip=flip, reader=reader,
    )  # fmt: skip
    from mmdit.latents.request import DTYPES, EncodeOptions

    how = EncodeOptions(
        dtype=dtype, batch_size=batch, shard_size=shard, workers=workers, deadline=deadline,
        max_skipped=_skip_budget(max_skipped), psnr_every=psnr_every, psnr_floor=psnr_floor,
        retry_skipped=retry_skipped,
    )  # fmt: skip
    tiles = options.tiling_of(tiling)
    if engine == "here" and processes != 1:
        raise Refused(
            "--processes is for --engine ray", got=processes, fix="start tools/encode.py by torchrun for several here"
        )
    found = source_of(
        source, rules, kind=kind, captions=captions, caption_from=caption_from, labels=labels,
        label_names=label_names, no_caption=no_caption, bad_captions=bad_captions, max_caption=max_caption,
    )  # fmt: skip
    from mmdit.conditioning import load_text_encoder
    from mmdit.latents.codec import load_codec
    from mmdit.latents.encode import ALONE, encode_clips
    from mmdit.latents.report import TooManySkipped
    from mmdit.latents.texts import encode_texts
    from mmdit.pipelines.process_group import process_group
    from mmdit.tools.progress import progress_line

    too_many = None
    with process_group(device) as group:
        device = options.device_of(group.device)
        load = partial(load_codec, codec, device=device, dtype=DTYPES[precision], tiling=tiles)
        if group.is_first:
            options.print_notes(found)
        # Loaded now, so that a wrong name is found before the work and not after it.
        encoder = None
        if text_encoder is not None and group.is_first:
            encoder = load_text_encoder(text_encoder, device=device)
        try:
            with progress_line("encode", "clips", quiet=not group.is_first) as advance:
                report = encode_clips(
                    found, out, load(), rules, how, codec_name=codec, command=words_given() or None, progress=advance,
                    team=group.state or ALONE, engine=_ray(load, processes, device) if engine == "ray" else None,
                )  # fmt: skip
        except TooManySkipped as error:
            too_many, report = error, error.report
    if report is not None:
        _print(report)
        if encoder is not None:
            print(f"text embeddings: {encode_texts(out, encoder)}")
    if too_many is not None:
        raise too_many


def _ray(load: Callable[[], "Codec"], processes: int, device: str) -> "Engine":
    from mmdit.latents.cluster import ray_engine

    return ray_engine(load, processes, gpus=float(device.startswith("cuda")))


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
        rows.append(("latents no longer used", report.unused, "`mmdit verify STORE --prune` removes them"))
    table = Table("clips", "", "", show_header=False, box=None, pad_edge=False)
    for name, count, words in rows:
        table.add_row(name, str(count), words)
    console = Console(highlight=False)
    console.print(table)
    if report.psnr is not None:
        console.print(f"reconstruction: {report.psnr:.1f} dB PSNR on the sampled clips")
    if report.speeds != (1.0, 1.0, 1.0):
        console.print("speed against the source: {:.2f} least, {:.2f} median, {:.2f} most".format(*report.speeds))
    console.print(f"store: {report.store}", soft_wrap=True)


if __name__ == "__main__":
    run(main)
