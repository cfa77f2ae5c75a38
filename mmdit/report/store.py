"""What is in a latent store: its figures, and a page with a few of its clips beside what the codec makes of them."""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit import files
from mmdit.clips.decode import BadClip, ReadRequest, read_request
from mmdit.clips.part import Part
from mmdit.clips.video import Frames, clip_to_frames, frames_to_clip, write_clip, write_image
from mmdit.latents.codec import Codec
from mmdit.latents.facts import read_facts, where_of
from mmdit.latents.fidelity import psnr
from mmdit.latents.store import LatentStore
from mmdit.latents.verify import check_codec
from mmdit.report.page import environment

MOST_LABELS = 12


def store_figures(store: LatentStore) -> dict[str, Any]:
    """Counts, lengths, labels, reconstruction and size of a store.

    "psnr" is (min, median, max) in dB over the clips it was measured on, or None; "speed" is (min, median, max).
    """
    measured = store.column("psnr").drop_null().to_numpy()
    lengths = store.column("frames").to_numpy() / store.column("fps").to_numpy()
    counts = np.bincount(numbers[numbers >= 0]) if ((numbers := store.label_numbers()) >= 0).any() else np.zeros(0, int)
    labels = sorted(zip(store.labels, counts.tolist(), strict=False), key=lambda pair: -pair[1])
    return {
        "clips": len(store),
        "skipped": store.meta["counts"]["skipped"],
        "groups": store.groups,
        "labels": labels[:MOST_LABELS],
        "labels_in_all": len(store.labels),
        "captions": len(store) - store.column("caption").null_count,
        "seconds": float(lengths.sum()),
        "length": _spread(lengths),
        "speed": _spread(store.column("speed").to_numpy()),
        "psnr": _spread(measured) if len(measured) else None,
        "psnr_measured": len(measured),
        "bytes": sum(facts["bytes"] for facts in store.shards.values()),
        "shards": len(store.shards),
        "codec": store.meta["codec"]["name"] or store.meta["codec"]["fingerprint"][:16],
        "dtype": store.meta["settings"]["dtype"],
    }


def sample_rows(store: LatentStore, count: int) -> list[int]:
    """`count` rows, or fewer, spread evenly over the groups."""
    share = -(-count // max(1, len(store.groups)))
    rows = [row for group in store.groups for row in group.rows[:: max(1, -(-group.count // share))][:share]]
    return rows[:count]


def decode_rows(store: LatentStore, codec: Codec, rows: Sequence[int]) -> list[Frames]:
    """What the codec makes of the latents of these rows, a clip each, uint8 (frame, height, width, 3).

    Raises:
        Refused: it is not the codec of the store.
    """
    check_codec(store, codec)
    return [clip_to_frames(codec.decode(store.latent(row)[0].float()[None])[0]) for row in rows]


def read_original(row: dict[str, Any], root: Path, part: Part | None) -> Frames | None:
    """The clip of a row from its source, cut and scaled as it was encoded; None when that cannot be read any more.

    `root` is what the source's path is relative to, `part` where it lies if it is not a file of its own.
    """
    file, offset, length = where_of(root, row["source"], part)
    request = ReadRequest(
        path=str(file), offset=offset, length=length, frames=row["frames"], size=(row["height"], row["width"]),
        fps=row["fps"], start=row["start"], flip=row["flip"], stride=row["stride"],
        reader="decord" if row["reader"] == "decord" else "pyav",
    )  # fmt: skip
    try:
        return read_request(request).frames
    except BadClip:
        return None


def write_store_page(store: LatentStore, codec: Codec | None, path: Path, *, clips: int = 12) -> Path:
    """Writes the page as one HTML file that needs no other. Without a codec it has figures only."""
    made = store.meta.get("made") or {}
    source = Path(made["source"]) if made.get("source") and Path(made["source"]).is_dir() else None
    facts = {} if source is None else read_facts(Path(str(store.place)))
    rows = sample_rows(store, clips) if codec is not None else []
    cards = []
    for row, again in zip(rows, decode_rows(store, codec, rows) if codec is not None else [], strict=True):
        known = store.row(row)
        part = facts[known["source"]].part if known["source"] in facts else None
        original = read_original(known, source, part) if source is not None else None
        cards.append(
            {
                "row": row,
                "caption": known["caption"],
                "label": known["label"],
                "source": known["source"],
                "original": None if original is None else _uri(original, known["fps"]),
                "again": _uri(again, known["fps"]),
                "psnr": known["psnr"] if original is None else _psnr_of(original, again),
            }
        )
    view = {"name": str(store.place), "figures": store_figures(store), "cards": cards, "has_source": source is not None}
    files.write_text(path, environment().get_template("store.html.j2").render(view))
    return path


def _spread(values: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    return float(values.min()), float(np.median(values)), float(values.max())


def _psnr_of(a: Frames, b: Frames) -> float:
    return psnr(frames_to_clip(a)[None], frames_to_clip(b)[None]).item()


def _uri(frames: Frames, fps: float) -> dict[str, str]:
    """A clip as a data: address: a video, or an image where it is one frame or of an odd size."""
    with tempfile.TemporaryDirectory() as folder:
        still = len(frames) == 1 or frames.shape[1] % 2 or frames.shape[2] % 2
        path = Path(folder) / ("clip.png" if still else "clip.mp4")
        if still:
            write_image(path, frames[0])
        else:
            write_clip(path, frames, fps)
        kind = "image/png" if still else "video/mp4"
        data = base64.b64encode(path.read_bytes()).decode()
        return {"tag": "img" if still else "video", "uri": f"data:{kind};base64,{data}"}
