"""Which data a run was begun with, and what has changed of it: the rows it trains on, the labels, the text encoder."""

import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from accelerate.utils import gather_object

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.live import Skipped
from mmdit.training.run import Run
from mmdit.training.sources import Pool, Sources

log = logging.getLogger("mmdit.training")

OVERRIDE = "--accept-data"
COLUMNS = ("id", "caption", "label")


def null_conditions(run: Run) -> list[str] | None:
    """Which conditions the run leaves out now and then: those that guidance can lead away from. None where the weights
    that it was begun with may know more."""
    said = run.config.conditions
    if run.config.init_from is not None:
        return None
    shares = {"label": said.drop_label * said.labels, "text": said.drop_text * (said.text is not None)}
    return [name for name, share in shares.items() if share > 0]


def data_state(run: Run) -> dict[str, Any]:
    """What state.json keeps of the data, to be `run.data`; `check_data` compares it."""
    text = run.config.conditions.text
    return {
        "codec": run.sources.codec,
        "clip": run.sources.clip(run.pool),
        "rows": write_rows(run.folder, run.sources, run.splits["train"].pools),
        "label_names": run.sources.labels if run.config.conditions.labels else [],
        "given_frames": [kind for kind, share in run.config.conditions.given_frames.items() if share > 0],
        "null_conditions": null_conditions(run),
        "text_encoder": None if text is None else text.encoder,
        "text_encoder_fingerprint": run.text_fingerprint,
    }


def check_data(run: Run, state: dict[str, Any], *, accept: bool = False) -> None:
    """Refused where the data differ from what a checkpoint's `state` tells; keys that it lacks are not compared.

    Args:
        accept: other rows of the same labels, codec and kind of clip are taken, and logged.
    """
    now = run.data
    where = run.sources.where
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


def write_rows(run_folder: Path, sources: Sources, pools: list[Pool]) -> str:
    """Keeps id, caption and label of the clips in the run folder; returns the first 16 digits of their sha256."""
    columns = {
        name: pyarrow.chunked_array(
            [
                chunk
                for pool in pools
                for chunk in sources.stores[pool.source].column(name, pool.group.first, pool.group.count)
                .cast(pyarrow.string()).chunks
            ],
            pyarrow.string(),
        )
        for name in COLUMNS
    }  # fmt: skip
    sha256 = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in columns.values()), strict=True):
        sha256.update(json.dumps(row).encode() + b"\n")
    digest = sha256.hexdigest()[:16]
    if not rows_path(run_folder, digest).exists():
        files.write_parquet(rows_path(run_folder, digest), pyarrow.table(columns))
    return digest


def write_skipped(run: Run) -> None:
    """Lists the videos that could not be read in the run's quarantine.parquet; called on every process."""
    if not run.sources.live:
        return
    skipped = dict.fromkeys(tuple(clip) for clip in gather_object(run.sources.skipped))
    if skipped and run.accelerator.is_main_process:
        rows = [dict(zip(Skipped._fields, clip, strict=True)) for clip in skipped]
        files.write_parquet(run.folder / "quarantine.parquet", pyarrow.Table.from_pylist(rows))


def _changes(before: Path, after: Path) -> str:
    if not before.is_file():
        return f"other clips than {before.name}, which is gone"
    old, new = (pyarrow.parquet.read_table(path).to_pylist() for path in (before, after))
    was, now = Counter(row["id"] for row in old), Counter(row["id"] for row in new)
    about = {row["id"]: row for row in old}
    other = sum(row["id"] in about and row != about[row["id"]] for row in new)
    said = f"{(now - was).total()} clips added, {(was - now).total()} removed, {other} with another caption or label"
    return said if was != now or other else f"{said}, in another order"
