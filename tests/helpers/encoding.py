"""Encoding in a test: settings by name, and what a store's folder holds."""

from pathlib import Path
from typing import Any, cast

import pytest
from pooled import Direct, Pooled

from mmdit.clips.buckets import Bucket
from mmdit.clips.source import find_source
from mmdit.latents import encode as encode_module
from mmdit.latents import plan, work
from mmdit.latents.encode import encode_clips
from mmdit.latents.report import EncodeReport
from mmdit.latents.request import ClipRules, EncodeOptions

RULES = {"buckets": (), "fps": 8.0, "reader": "pyav"}
OPTIONS = {"batch_size": 2, "shard_size": 3, "workers": 1, "max_skipped": 2, "psnr_every": 1, "dtype": "float32"}


def encode(source: Path, store: Path, codec: Any = None, *, captions: Path | None = None, **changes: Any) -> Any:
    """`encode_clips` with the settings above, but for `changes`: fields of rules or options, arguments, or `frames` and
    `size` of the one bucket."""
    if "buckets" not in changes:
        changes["buckets"] = (Bucket(changes.pop("frames", 5), *changes.pop("size", (32, 48))),)
    rules = {name: changes.pop(name, value) for name, value in RULES.items()}
    rules |= {name: changes.pop(name) for name in ("stride", "windows", "flip", "budget") if name in changes}
    options = {name: changes.pop(name, value) for name, value in OPTIONS.items()}
    options |= {name: changes.pop(name) for name in ("deadline", "psnr_floor", "retry_skipped") if name in changes}
    found = find_source(source, table=captions)
    report: EncodeReport | None = encode_clips(
        found, store, cast(Any, codec or Pooled()), ClipRules(**rules), EncodeOptions(**options), **changes
    )
    return report


def contents(store: Path) -> dict[str, bytes]:
    """Every file, temporary parts included, but not the lock."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are read in this process, which spares the test the start of another."""
    for module in (encode_module, plan, work):
        monkeypatch.setattr(module, "ClipReader", Direct)
