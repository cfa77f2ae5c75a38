"""The note of how a file was made, checked before anything is made by it: files come from anybody."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from mmdit.diffusion import Guidance, Projection, RectifiedFlow, make_scheduler
from mmdit.errors import Refused
from mmdit.pipelines.faster import USABLE
from mmdit.pipelines.loading import Source, own_scheduler
from mmdit.pipelines.prompt_list import read_size
from mmdit.pipelines.request import check_sampling, pair_conditions

NEEDED = (
    "frames_sha256", "batch", "seed", "index", "frames", "size", "fps", "steps", "guidance", "precision", "prompt",
    "negative", "label", "sampler", "guidance_interval",
)  # fmt: skip
KINDS: dict[str, tuple[type, ...]] = {
    "frames_sha256": (str,), "batch": (list,), "frames": (int,), "size": (str,), "fps": (int, float),
    "prompt": (str, type(None)), "negative": (str,), "label": (str, type(None)), "sampler": (str,), "weights": (str,),
    "guidance_interval": (list, type(None)), "guidance_projection": (dict, type(None)), "threads": (int, type(None)),
    "faster": (dict, type(None)), "given": (dict, type(None)), "source": (str,), "given_from": (dict,),
}  # fmt: skip
GIVEN = ("image", "last_image", "extend")
MOST_CLIPS = 10_000  # of a batch
MOST_THREADS = 1024


def check_note(note: dict[str, Any], places: dict[str, Any], file: Path) -> None:
    """Refused, naming `file`, for a note that says too little, or what no file is made from.

    Args:
        note: as `mmdit generate` left it. places: where that lay (`manifest.PLACES`).
    """
    missing = [key for key in NEEDED if key not in note]
    if missing:
        got = f"no {', '.join(missing)}" if len(missing) < len(NEEDED) else "no note of mmdit"
        raise Refused("the file does not say how it was made", where=file, got=got,
                      expected="a file of this version's mmdit generate")  # fmt: skip
    for key, value in {**note, **places}.items():
        if key in KINDS and (not isinstance(value, KINDS[key]) or isinstance(value, bool)):
            raise _damaged(file, key, value)
    batch, interval, threads = note["batch"], note["guidance_interval"], note.get("threads")
    fits = {
        "batch": len(batch) == 2 and all(type(n) is int for n in batch) and 0 <= batch[1] < batch[0] <= MOST_CLIPS,
        "guidance_interval": interval is None or (len(interval) == 2 and all(map(_is_number, interval))),
        "fps": 0 < note["fps"] <= 1000,
        "threads": threads is None or 1 <= threads <= MOST_THREADS,
        "given": all(name in GIVEN and _is_given(about) for name, about in (note.get("given") or {}).items()),
        "given_from": all(isinstance(path, str) for path in (places.get("given_from") or {}).values()),
        "faster": _is_faster(note.get("faster") or {}),
    }
    for key, good in fits.items():
        if not good:
            raise _damaged(file, key, note.get(key, places.get(key)))
    try:
        read_size(note["size"], "size")
        check_sampling(steps=note["steps"], guidance=note["guidance"], seed=note["seed"], first_index=note["index"],
                       clips_each=1, batch_size=batch[0], precision=note["precision"])  # fmt: skip
        Guidance(rescale=note.get("guidance_rescale") or 0.0, projection=_projection(note.get("guidance_projection")))
    except Refused as error:
        raise Refused(f"the note of how it was made is damaged, in {file}: {error}") from None


def check_note_fits(note: dict[str, Any], found: Source, file: Path) -> None:
    """Refused, naming `file`, before weights are loaded: a label, a prompt, a guidance or a sampler that the source
    does not know."""
    prompt = note["prompt"] or ("" if found.has_text else None)
    try:
        conditions = pair_conditions(prompt, note["label"], labels=found.labels, has_text=found.has_text)
        found.null_conditions.check(note["guidance"], conditions, [note["negative"]])
        if note["sampler"] != own_scheduler(found):
            make_scheduler(note["sampler"], found.process or RectifiedFlow())
    except Refused as error:
        raise Refused(f"the note of how it was made does not fit the checkpoint, in {file}: {error}") from None


def _projection(values: dict[str, Any] | None) -> Projection | None:
    if values is not None and set(values) != {field.name for field in fields(Projection)}:
        raise Refused("not a projection of guidance", got=str(values)[:60])
    return Projection(**values) if values is not None else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_given(about: object) -> bool:
    """The name of a file, no path, its hash, and perhaps its size."""
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        return False
    if "size" in about:
        read_size(about["size"], "given")
    return bool(about.get("file")) and Path(about["file"]).name == about["file"] and "sha256" in about


def _is_faster(faster: dict[str, Any]) -> bool:
    how = faster.get("broadcast", {"every": {}, "interval": [0, 0]})
    if not set(faster) <= USABLE:
        return False
    whole = isinstance(how, dict) and isinstance(how.get("every"), dict) and isinstance(how.get("interval"), list)
    return whole and all(map(_is_number, [*how["every"].values(), *how["interval"], faster.get("first_block", 0)]))


def _damaged(file: Path, key: str, value: object) -> Refused:
    return Refused("the note of how it was made is damaged", where=file, got=f"{key} {str(value)[:60]!r}",
                   expected="as mmdit generate wrote it")  # fmt: skip
