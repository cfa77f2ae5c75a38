"""Which data a run was begun with, and what has changed of it: the rows it trains on, the labels, the text encoder."""

import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.index import Store
from mmdit.training.run import Run

log = logging.getLogger("mmdit.training")

OVERRIDE = "--accept-data"
COLUMNS = ("id", "caption", "label")


def data_state(run: Run) -> dict[str, Any]:
    """What state.json keeps of the data, to be `run.data`; `check_data` compares it."""
    text = run.config.conditions.text
    return {
        "codec": run.store.meta["codec"],
        "clip": run.store.clip,
        "rows": write_rows(run.folder, run.store, run.splits["train"].rows),
        "label_names": run.store.labels if run.config.conditions.labels else [],
        "text_encoder": None if text is None else text.encoder,
        "text_encoder_fingerprint": run.text_fingerprint,
    }


def check_data(run: Run, state: dict[str, Any], *, accept: bool = False) -> None:
    """Refused where the data differ from what a checkpoint's `state` tells; keys that it lacks are not compared.

    Args:
        accept: other rows of the same labels, codec and kind of clip are taken, and logged.
    """
    now = run.data
    where = run.store.place
    _check_equal("the codec's fingerprint", state["codec"]["fingerprint"], now["codec"]["fingerprint"], where)
    _check_equal("the kind of clip", state["clip"], now["clip"], where)
    _check_equal("the label names", state["label_names"], now["label_names"], where)
    if "text_encoder_fingerprint" in state:
        name = f"text_encoder_fingerprint of {now['text_encoder']}"
        _check_equal(name, state["text_encoder_fingerprint"], now["text_encoder_fingerprint"], run.folder)
    if "rows" in state and state["rows"] != now["rows"]:
        said = _changes(rows_path(run.folder, state["rows"]), rows_path(run.folder, now["rows"]))
        if not accept:
            raise Refused(
                "the data set is not the one that this run was begun with", where=where, got=said,
                expected="the same clips, captions and labels",
                fix=f"train into another folder, or go on with {OVERRIDE}",
            )  # fmt: skip
        log.warning("the run goes on with another data set: %s", said)


def _check_equal(name: str, was: Any, now: Any, where: object) -> None:
    if was != now:
        raise Refused(
            f"{name} is not what this run was begun with", where=where, got=now, expected=was,
            fix="set it back, or train into another folder",
        )  # fmt: skip


def rows_path(run_folder: Path, digest: str) -> Path:
    return run_folder / "rows" / f"{digest}.parquet"


def write_rows(run_folder: Path, store: Store, rows: range) -> str:
    """Keeps id, caption and label of the rows in the run folder; returns the first 16 digits of their sha256."""
    columns = {name: store.column(name, rows.start, len(rows)).cast(pyarrow.string()) for name in COLUMNS}
    sha256 = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in columns.values()), strict=True):
        sha256.update(json.dumps(row).encode() + b"\n")
    digest = sha256.hexdigest()[:16]
    if not rows_path(run_folder, digest).exists():
        files.write_parquet(rows_path(run_folder, digest), pyarrow.table(columns))
    return digest


def _changes(before: Path, after: Path) -> str:
    if not before.is_file():
        return f"other clips than {before.name}, which is gone"
    old, new = (pyarrow.parquet.read_table(path).to_pylist() for path in (before, after))
    was, now = Counter(row["id"] for row in old), Counter(row["id"] for row in new)
    about = {row["id"]: row for row in old}
    other = sum(row["id"] in about and row != about[row["id"]] for row in new)
    said = f"{(now - was).total()} clips added, {(was - now).total()} removed, {other} with another caption or label"
    return said if was != now or other else f"{said}, in another order"
