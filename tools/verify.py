"""`mmdit verify`: reads a whole latent store or a run, and finds (in a store: repairs) what is damaged."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.latents.store import LatentStore

SHOWN = 20  # damages that are printed


def main(
    store: Annotated[Path, typer.Argument(help="The latent store, or the run folder.")],
    fix: Annotated[bool, typer.Option("--fix", help="Take out what is damaged, and encode it again.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Say which latents no row uses, and remove them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --prune: only say it.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG of decoded clips. [default: contact_sheet.png in the store]")
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips on the contact sheet; 0: none.")] = 8,
    steps: Annotated[
        int, typer.Option(help="Of a run: steps that are trained to prove that resuming is exact; 0: none.")
    ] = 3,
) -> None:
    """Reads every latent of a store: sizes, hashes, counts, finite values, groups and labels.

    Of a run, reads every checkpoint, and proves on a copy that an interrupted training goes on bit for bit.

    A few clips are decoded to a contact sheet. Ends with 0 when the store is sound, and with 4 when something is
    damaged; --fix takes the damaged shards out and encodes them again, if the sources are still there, else nothing.

    Example:
      mmdit verify stores/mine --fix
    """
    import contextlib

    from mmdit.errors import Stopped
    from mmdit.latents.store import LatentStore
    from mmdit.latents.verify import remove_damaged, verify_store
    from mmdit.tools import cli, encode
    from mmdit.tools.progress import progress_line

    if (store / "checkpoints").is_dir():
        _verify_run(store, steps)
        return
    opened = LatentStore.open(store)
    with progress_line("verify", "shards") as advance:
        report = verify_store(store, lambda done, total: advance(done, total, ""))
    for damage in report.damages[:SHOWN]:
        print(damage)
    if len(report.damages) > SHOWN:
        print(f"and {len(report.damages) - SHOWN} more")
    if not report.damages:
        print(f"sound: {report.clips} clips in {report.shards} shards, {report.bytes / 1e6:.1f} MB")
        if prune:
            _prune(store, dry_run)
        if clips > 0:
            try:
                _write_sheet(LatentStore.open(store), sheet or store / "contact_sheet.png", clips)
            except OSError as error:  # the store may be another's, or on a medium that cannot be written to
                if sheet is not None:
                    raise
                print(f"no contact sheet: {error}")
        return
    words, made = _words(opened, store), opened.meta.get("made") or {}
    again = shlex.join(["mmdit", "encode", *words]) if words else "the mmdit encode that made it"
    if not fix:
        mend = shlex.join(["mmdit", "verify", str(store), "--fix"])
        raise Stopped("the store is damaged", where=store, got=f"{len(report.damages)} faults", expected="none",
                      fix=f"{mend}: takes out the damaged shards, and runs {again}")  # fmt: skip
    if words is None or not Path(made["source"]).is_dir() or not Path(made["folder"]).is_dir():
        raise Stopped("the sources are not there to encode again what is damaged; nothing is taken out", where=store,
                      got=f"source folder {made.get('source', 'not recorded')}",
                      fix=f"put them there, or a link: it runs {again}")  # fmt: skip
    print(f"taken out: {remove_damaged(store, report)} shards")
    with contextlib.chdir(made["folder"]):
        cli.call(encode.main, "encode", words)


def _verify_run(folder: Path, steps: int) -> None:
    from mmdit.errors import Stopped
    from mmdit.training.verify import verify_run

    report = verify_run(folder, steps)
    for damage in report.damages:
        print(damage)
    if report.damages:
        raise Stopped(
            "the run is damaged", where=folder, got=f"{len(report.damages)} faults", expected="none",
            fix="`mmdit train ... --fallback` goes on from the newest checkpoint that is whole",
        )  # fmt: skip
    proved = f"; {report.steps} steps, interrupted and resumed, came out bit for bit" if report.steps else ""
    print(f"sound: {report.checkpoints} checkpoints{proved}")


def _words(opened: "LatentStore", store: Path) -> list[str] | None:
    """The words of the `mmdit encode` that made the store, for where it is now."""
    made: dict[str, Any] = opened.meta.get("made") or {}
    words = list(made.get("command") or [])
    for place, word in enumerate(words):
        name, equals, out = word.partition("=")
        if name != "--out":
            continue
        out = out if equals else words[place + 1]
        if Path(made["folder"], out).resolve() != store.resolve():
            words[place : place + 1 + (not equals)] = ["--out", str(store.resolve())]
        return words
    return None


def _prune(store: Path, dry_run: bool) -> None:
    from mmdit.latents.prune import prune_store

    unused = prune_store(store, dry_run=True)
    print(f"not used: {len(unused.ids)} latents, {unused.bytes / 1e6:.1f} MB")
    for id, source in zip(unused.ids[:SHOWN], unused.sources, strict=False):
        print(f"  {id} of {source}")
    if unused.ids and not dry_run:
        prune_store(store, dry_run=False)
        print("removed")


def _write_sheet(opened: "LatentStore", path: Path, clips: int) -> None:
    """Decodes a few clips, where the codec can be loaded."""
    from mmdit.errors import Refused
    from mmdit.latents.codec import load_codec
    from mmdit.report.sheet import contact_sheet
    from mmdit.report.store import decode_rows, sample_rows

    try:
        codec = load_codec(opened.meta["codec"]["name"])
    except Refused as error:
        print(f"no contact sheet: {error}")
        return
    rows = sample_rows(opened, clips)
    known = [opened.row(row) for row in rows]
    captions = [f"row {row}: {about['caption'] or about['source']}" for row, about in zip(rows, known, strict=True)]
    scale = max(1, round(96 / min(min(about["height"], about["width"]) for about in known)))
    print(f"contact sheet: {contact_sheet(decode_rows(opened, codec, rows), captions, path, scale=scale)}")


if __name__ == "__main__":
    run(main)
