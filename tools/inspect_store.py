"""`mmdit inspect`: what is in a latent store."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmdit.tools.cli import run


def main(
    store: Annotated[str, typer.Argument(help="The latent store: a folder, or a URL that fsspec knows.")],
    out: Annotated[Path | None, typer.Option(help="The page. [default: inspect.html in the store]")] = None,
    clips: Annotated[int, typer.Option(help="Clips on the page.")] = 12,
) -> None:
    """Shows what is in a latent store, as a table and as a page with some of its clips.

    On the page each clip is shown as the codec gives it back, beside its original where the source folder still is.

    Example:
      mmdit inspect stores/mine
    """
    from mmdit.errors import Refused
    from mmdit.latents.codec import load_codec
    from mmdit.latents.store import LatentStore
    from mmdit.report.store import store_figures, write_store_page

    if out is None and "://" in store:
        raise Refused("no place for the page", got=f"a store at {store}", fix="name one with --out PAGE.html")
    if (Path(store) / "checkpoints").is_dir():
        raise Refused("no latent store", where=store, got="a run", fix=f"look at {Path(store) / 'report.html'}")
    opened = LatentStore.open(store)
    _print(store_figures(opened))
    codec = None
    try:
        codec = load_codec(opened.meta["codec"]["name"])
    except Refused as error:
        print(f"no clips on the page: {error}")
    try:
        print(f"page: {write_store_page(opened, codec, out or Path(store) / 'inspect.html', clips=clips)}")
    except OSError as error:  # the store may be another's, or on a medium that cannot be written to
        if out is not None:
            raise
        print(f"no page: {error}; name a place for it with --out PAGE.html")


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    groups = Table("split", "frames", "size", "latent", "clips", box=None, pad_edge=False)
    for group in figures["groups"]:
        latent = "x".join(map(str, group.latent))
        groups.add_row(group.split, str(group.frames), f"{group.height}x{group.width}", latent, f"{group.count:,}")
    facts = Table("", "", show_header=False, box=None, pad_edge=False)
    for name, words in _facts(figures):
        facts.add_row(name, words)
    console = Console(highlight=False)
    console.print(groups)
    console.print(facts)


def _facts(figures: dict[str, Any]) -> list[tuple[str, str]]:
    labels = ", ".join(f"{name} ({count})" for name, count in figures["labels"])
    more = figures["labels_in_all"] - len(figures["labels"])
    psnr = figures["psnr"]
    spread = "{:.1f} / {:.1f} / {:.1f} dB PSNR (min, median, max)"
    return [
        ("clips", f"{figures['clips']:,}; skipped {figures['skipped']:,}"),
        ("captions", f"{figures['captions']:,}"),
        ("labels", (labels or "none") + (f", and {more} more" if more > 0 else "")),
        ("length", "{:.2f} / {:.2f} / {:.2f} s (min, median, max)".format(*figures["length"])),
        ("speed", "{:.2f} / {:.2f} / {:.2f} (min, median, max)".format(*figures["speed"])),
        ("reconstruction", f"{spread.format(*psnr)}, {figures['psnr_measured']:,} clips" if psnr else "not measured"),
        ("size on disk", f"{figures['bytes'] / 1e6:,.1f} MB in {figures['shards']:,} shards"),
        ("codec", f"{figures['codec']}, {figures['dtype']}"),
    ]


if __name__ == "__main__":
    run(main)
