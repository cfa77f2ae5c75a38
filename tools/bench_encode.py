"""`mmdit bench encode`: encoding, beside what it is to be compared with."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools import clip_options as options
from mmdit.tools.bench_output import tell

if TYPE_CHECKING:
    from mmdit.clips.buckets import Bucket
    from mmdit.latents.codec import Codec


def main(
    codec: options.Codec = "fashion",
    bucket: Annotated[str, typer.Option(help="FRAMESxHEIGHTxWIDTH of a clip.")] = "17x64x48",
    source_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the video files.")] = "64x48",
    clips: Annotated[int, typer.Option(min=16, help="How many.")] = 256,
    batch: options.Batch = 16,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the codec on a CPU.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Each is measured so many times; the median is told.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measures encoding on video files that it makes: all of it, the codec alone, reading alone, and a plain loop.

    The codec alone has its clips in memory. The plain loop reads and encodes in turn, in one process. Times are of the
    whole way, files of the store included. The share is that of the rate of a large product on this device.

    Example:
      mmdit bench encode --clips 256 --source-size 128x96
    """
    import torch

    from mmdit.clips.buckets import Bucket
    from mmdit.latents.codec import load_codec
    from mmdit.latents.options import size_of
    from mmdit.training.meter import memory_held
    from mmdit.training.precision import product_rates

    torch.set_num_threads(threads)
    device = options.device_of(device)
    loaded, shape = load_codec(codec, device=device), Bucket.parse(bucket)
    loaded.latent_size(shape)
    with tempfile.TemporaryDirectory() as folder:
        videos = _make_videos(Path(folder), clips, shape.frames, size_of(source_size))
        measured = _encoding(Path(folder), videos, loaded, shape, batch, workers, runs)
    memory, flops = memory_held(torch.device(device)), _flops(loaded, shape)
    (product,) = product_rates(torch.float32, device=device)
    rates = {name: clips / statistics.median(seconds) for name, seconds in measured.items()}
    ratios = {
        "encode / codec alone": rates["encode"] / rates["codec alone"],
        "encode / plain loop": rates["encode"] / rates["plain loop"],
    }
    about = {
        "codec": codec, "bucket": bucket, "source": source_size, "clips": clips,
        "batch": batch, "workers": workers, "threads": threads, "runs": runs, "precision": "float32",
    }  # fmt: skip
    figures = {
        "about": about, "clips_per_second": rates, "ratios": ratios, "flops_per_clip": flops,
        "product_flops_per_s": product, "memory": memory,
    }  # fmt: skip
    lines = [", ".join(f"{name} {value}" for name, value in about.items())]
    lines.append(f"the codec: {flops / 1e9:.2f} GFLOP a clip; {memory / 1e6:.0f} MB held at most")
    lines.append(f"{'':14} {'clips/s':>8} {'frames/s':>9} {'GFLOP/s':>8} {'share':>6}")
    for name, rate in rates.items():
        done = "" if name == "reading alone" else f"{rate * flops / 1e9:8.1f} {rate * flops / product:6.1%}"
        lines.append(f"{name:14} {rate:8.1f} {rate * shape.frames:9.0f} {done}".rstrip())
    lines += [f"{name:22} {ratio:.2f}" for name, ratio in ratios.items()]
    tell(figures, lines, as_json=as_json, device=device)


def _flops(codec: "Codec", bucket: "Bucket") -> int:
    """Operations of the codec on one clip; a multiply-accumulate counts as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        codec.encode(torch.zeros(1, 3, bucket.frames, bucket.height, bucket.width))
    return counted.get_total_flops()


def _make_videos(folder: Path, count: int, frames: int, size: tuple[int, int]) -> list[Path]:
    """Waves that move: as hard to decode as quiet footage of that size."""
    import numpy as np

    from mmdit.clips.video import write_clip

    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    paths = []
    for number in range(count):
        phases = 3 * np.arange(frames)[:, None, None, None] + 2 * np.arange(3)
        wave = np.sin((x + y * (number % 7) / 3 + number)[None, :, :, None] / 9 + phases / 5)
        paths.append(folder / "videos" / f"{number:05d}.mp4")
        write_clip(paths[-1], (wave * 100 + 128).astype(np.uint8), 8)
    return paths


def _encoding(
    folder: Path, videos: list[Path], codec: "Codec", bucket: "Bucket", batch: int, workers: int, runs: int
) -> dict[str, list[float]]:
    """Seconds of each run, by what was measured. The kinds take turns, so that a slow minute slows all of them."""
    import torch

    from mmdit.clips.decode import read_clip
    from mmdit.clips.source import find_source
    from mmdit.clips.video import frames_to_clip
    from mmdit.latents.encode import encode_clips
    from mmdit.latents.request import ClipRules, EncodeOptions

    shape: dict[str, Any] = {"frames": bucket.frames, "size": (bucket.height, bucket.width), "fps": 8.0}
    rules, how = ClipRules((bucket,), 8.0), EncodeOptions(batch_size=batch, workers=workers, psnr_every=0)
    clips = torch.stack([frames_to_clip(read_clip(path, **shape).frames) for path in videos])
    stores = iter(range(runs + 1))

    def encode() -> None:
        encode_clips(find_source(videos[0].parent), folder / f"store-{next(stores)}", codec, rules, how)

    def codec_alone() -> None:
        for part in clips.split(batch):
            codec.encode(part).mean.cpu()

    def reading_alone() -> None:
        for path in videos:
            read_clip(path, **shape)

    def plain_loop() -> None:
        for first in range(0, len(videos), batch):
            read = [frames_to_clip(read_clip(path, **shape).frames) for path in videos[first : first + batch]]
            codec.encode(torch.stack(read)).mean.cpu()

    kinds: dict[str, Callable[[], None]] = {
        "encode": encode, "codec alone": codec_alone, "reading alone": reading_alone, "plain loop": plain_loop,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(runs + 1):
        for name, measured in kinds.items():
            began = time.perf_counter()
            measured()
            if number:  # the first time is slower: files come from the disk, kernels are chosen
                seconds[name].append(time.perf_counter() - began)
    return seconds
