"""`mmdit regenerate`: a generated file made again, and compared with what it was."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mmdit.tools.cli import run

TOLD = ("mmdit", "checkpoint", "step", "weights", "dtype", "codec", "torch", "diffusers", "device", "threads")


def main(
    file: Annotated[Path, typer.Argument(help="A file that mmdit generate wrote.")],
    out: Annotated[Path | None, typer.Option(help="The new file. [default: NAME-again beside it]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The run, checkpoint or pipeline folder. [default: as noted beside the file]")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Where the photo it begins with lies now, if moved.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="The same of the photo it ends with.")] = None,
    extend: Annotated[Path | None, typer.Option(help="The same of the video it goes on with.")] = None,
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
) -> None:
    """Makes a generated file again, from the note in it. On the same platform the pixels are identical.

    Where they are not, the file is written all the same, what differs (the checkpoint, a version, the device) is said
    in one line, and the exit code is 3. Given frames are read where they lay, or beside the file, and must not have
    changed.

    Example:
      mmdit regenerate clips/0-a-red-coat.mp4
      mmdit regenerate coat.mp4 --checkpoint runs/mine --out coat-again.mp4
      mmdit regenerate begun.mp4 --image photos/coat.jpg
    """
    from mmdit.errors import OverBudget, Refused
    from mmdit.pipelines.given_files import check_not_given, find_given, read_given
    from mmdit.pipelines.loading import WEIGHTS, call_facts, find_source, load_pipeline
    from mmdit.pipelines.note_checks import check_note_fits
    from mmdit.pipelines.output import check_own, check_writable, output_format, write_output
    from mmdit.pipelines.prompt_list import read_size
    from mmdit.pipelines.request import check_choice
    from mmdit.pipelines.source_sizes import check_source_size
    from mmdit.pipelines.wishes import frames_hash, made_on, make_frames
    from mmdit.tools.clip_options import device_of
    from mmdit.tools.progress import notes

    note, places = _read(file)
    source = checkpoint or _noted_source(places, file)
    out = out or file.with_name(f"{file.stem}-again{file.suffix}")
    if output_format(out) is None or out.absolute() == file.absolute():
        raise Refused("not a new file", where="--out", got=out, expected="a name that ends in .mp4, .gif, .webp, .png")
    check_writable(out)
    paths = find_given(note, file, places.get("given_from") or {},
                       {"image": image, "last_image": last_image, "extend": extend})  # fmt: skip
    check_not_given(out, *paths.values())
    check_own(out)
    found = find_source(source)
    check_note_fits(note, found, file)
    check_choice("weights", note.get("weights", "ema"), WEIGHTS)
    height, width = read_size(note["size"], str(file))
    check_source_size(found, frames=note["frames"], height=height, width=width, clips=note["batch"][0], codec=codec)
    given, _ = read_given(paths.get("image"), paths.get("last_image"), paths.get("extend"), clip=found.clip,
                          size=_size(note), force=True)  # fmt: skip
    print(f"made from: {found.folder}" + ("" if checkpoint else ", as is said beside the file"))
    with notes(), _threads(note.get("threads")):
        pipeline = load_pipeline(found, weights=note.get("weights", "ema"), codec=codec, device=device_of(device))
        pipeline.set_progress_bar_config(disable=True)
        pipeline.always_given, pipeline.always_force = given, True  # it could be made, so it can be again
        own = type(pipeline.scheduler).__name__
        if note["sampler"] != own:
            pipeline.use_sampler(note["sampler"])
        pipeline.use_faster(note.get("faster"))
        size, row = note["batch"]
        frames = make_frames(pipeline, [note] * size)[row]  # in a batch of that size: sums run in the same order
        facts = {**call_facts(found, pipeline, note["sampler"]), **made_on(pipeline)}
    same = frames_hash(frames) == note["frames_sha256"]
    write_output(out, frames, note["fps"], {**note, **facts, "frames_sha256": frames_hash(frames)})
    differs = [f"{key} {_short(facts.get(key))} (was {_short(note.get(key))})" for key in TOLD
               if facts.get(key) != note.get(key)]  # fmt: skip
    if not same:
        raise OverBudget("made, but the pixels are not identical", where=out,
                         got="; ".join(differs) or "the same checkpoint, versions and kind of device")  # fmt: skip
    print(f"identical: {out}" + (f" (although: {'; '.join(differs)})" if differs else ""))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The note of how a file was made, and where on this machine that lay (`manifest.PLACES`); what lies beside the
    file stands in for a lost note."""
    from mmdit.errors import Refused
    from mmdit.pipelines.manifest import PLACES, note_of
    from mmdit.pipelines.note_checks import check_note
    from mmdit.pipelines.output import output_format, read_note

    if not file.is_file():
        raise Refused("no such file", where=file)
    beside = _beside(file)
    note = (read_note(file) if output_format(file) else {}) or beside
    note, places = note_of(note), {key: value for key, value in beside.items() if key in PLACES}
    check_note(note, places, file)
    return note, places


def _noted_source(places: dict[str, Any], file: Path) -> Path:
    """The folder that what lies beside the file names: on this machine, and nothing that could be meant otherwise."""
    from mmdit.errors import Refused

    noted = places.get("source")
    if noted is None:
        raise Refused("nothing beside the file says where its checkpoint lies", where=file, fix="name it: --checkpoint")
    if not Path(noted).is_absolute() or not Path(noted).is_dir():
        raise Refused("the checkpoint that is noted beside the file is not there", where=file, got=noted,
                      expected="the absolute path of a folder", fix="name it: --checkpoint")  # fmt: skip
    return Path(noted)


def _size(note: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that given frames are read at; the clip's own where the note says no other."""
    told = [about.get("size") for about in (note.get("given") or {}).values()]
    height, width = map(int, (next(filter(None, told), None) or note["size"]).split("x"))
    return height, width


def _beside(file: Path) -> dict[str, Any]:
    """What FILE.json, or the manifest.json of a folder that the file is in, says of it."""
    from mmdit.errors import Refused
    from mmdit.pipelines.manifest import MANIFEST, read_manifest

    alone = file.with_name(f"{file.name}.json")
    if alone.is_file():
        try:
            value = json.loads(alone.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise Refused("what lies beside the file cannot be read", where=alone, got=str(error)[:80],
                          fix="remove it, and name --checkpoint") from None  # fmt: skip
        return value if isinstance(value, dict) else {}
    for folder in file.absolute().parents:
        if (folder / MANIFEST).is_file():
            name = file.absolute().relative_to(folder).as_posix()
            return next((row for row in read_manifest(folder / MANIFEST) if row["file"] == name), {})
    return {}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sums of a CPU depend on the number of threads that share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


if __name__ == "__main__":
    run(main)
