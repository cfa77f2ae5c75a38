"""`mmdit plan SOURCE`: what `mmdit encode` would do."""

from typing import TYPE_CHECKING, Annotated

import typer

from mmdit.tools import clip_options as options

if TYPE_CHECKING:
    from mmdit.latents.forecast import Forecast


def main(
    source: options.Source,
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
    batch: options.Batch = 16,
    workers: options.Workers = None,
    deadline: options.Deadline = 60.0,
    dtype: options.Dtype = "float16",
    reader: options.Reader = "pyav",
    with_codec: Annotated[
        bool, typer.Option("--with-codec", help="Load the codec, to measure how fast it encodes.")
    ] = False,
    device: Annotated[str, typer.Option(help="For --with-codec: auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
) -> None:
    """Says what `mmdit encode` with the same options would do, and does none of it.

    Every source's header is looked into, a few clips are read to see how long that takes, and nothing is written.

    Example:
      mmdit plan my_videos --token-budget 1024 --windows all
    """
    from mmdit.latents.options import rules_of, source_of

    rules = rules_of(
        frames=frames, size=size, bucket=bucket, token_budget=token_budget, fps=fps, stride=stride, windows=windows,
        window_step=window_step, flip=flip, reader=reader,
    )  # fmt: skip
    from mmdit.latents.request import EncodeOptions

    how = EncodeOptions(dtype=dtype, batch_size=batch, workers=workers, deadline=deadline)
    found = source_of(
        source, rules, kind=kind, captions=captions, caption_from=caption_from, labels=labels,
        label_names=label_names, no_caption=no_caption, bad_captions=bad_captions, max_caption=max_caption,
    )  # fmt: skip
    from mmdit.clips.reader import default_workers
    from mmdit.latents.codec import load_codec
    from mmdit.latents.forecast import forecast

    loaded = load_codec(codec, device=options.device_of(device) if with_codec else "meta")
    told = forecast(found, loaded, rules, how, workers or default_workers(), with_codec=with_codec)
    options.print_notes(found)
    _print(told)


def _print(told: "Forecast") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("bucket", "clips", "latent", "MB", box=None, pad_edge=False)
    for row in told.buckets:
        table.add_row(str(row.bucket), str(row.clips), "x".join(map(str, row.latent)), f"{row.bytes / 1e6:.1f}")
    console.print(table)
    console.print(f"kept: {told.clips} clips of {told.sources} sources, {told.seconds_of_video:.0f} s of video")
    dropped = sum(told.dropped.values())
    console.print(f"dropped: {dropped}")
    for reason, count in told.dropped.items():
        console.print(f"  {reason}: {count}, the first: {told.examples[reason]}", soft_wrap=True)
    console.print("speed against the source: {:.2f} least, {:.2f} median, {:.2f} most".format(*told.speeds))
    console.print(f"disk: {told.bytes / 1e6:.1f} MB")
    reading = "no clip could be read" if told.reading is None else f"reading {told.reading:.1f} clips/s"
    encoding = "the codec was not measured (--with-codec)" if told.encoding is None else f"encoding {told.encoding:.1f}"
    time = "unknown" if told.seconds is None else f"about {told.seconds:.0f} s"
    console.print(f"time: {time}{' or more' if told.encoding is None else ''}; {reading}, {encoding}")
