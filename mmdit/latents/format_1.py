"""Stores of format 1, read as if they were of format 2.

Format 1 held clips of one shape, in the order of their paths. What is new since: groups, label names, the table of
shards, and the columns flip, stride and speed.
"""

from collections import Counter
from typing import Any

import pyarrow
import pyarrow.compute

NEW_COLUMNS = {
    "flip": (False, pyarrow.bool_()),
    "stride": (None, pyarrow.int32()),
    "speed": (1.0, pyarrow.float64()),
}


def as_format_2(table: pyarrow.Table, meta: dict[str, Any]) -> tuple[dict[str, Any], pyarrow.Table, pyarrow.Table]:
    """store.json, index and shards as format 2 has them, the rows in the order of their splits; `table` is the old
    index."""
    splits = table["split"].to_pylist()
    table = table.take(sorted(range(len(splits)), key=splits.__getitem__))
    # An attribute of the name of a new column steps aside, as attributes of old columns' names did.
    table = table.rename_columns([f"attribute.{name}" if name in NEW_COLUMNS else name for name in table.column_names])
    for name, (value, kind) in NEW_COLUMNS.items():
        table = table.append_column(name, pyarrow.array([value] * len(table), kind))
    clip, latent = meta["clip"], meta["latent"]["shape"]
    height, width = clip["size"]
    groups, first = [], 0
    for split, count in sorted(Counter(splits).items()):
        same = {"split": split, "frames": clip["frames"], "height": height, "width": width, "latent": latent}
        groups.append(same | {"first": first, "count": count})
        first += count
    names = pyarrow.compute.unique(table["label"]).to_pylist()
    shards = [{"number": int(shard["name"].partition(".")[0])} | shard for shard in meta["shards"]]
    new = {
        "settings": {"codec": meta["codec"]["fingerprint"], "dtype": meta["latent"]["dtype"], "tiling": None},
        "clip": {name: clip[name] for name in ("frames", "size", "fps")},
        "groups": groups,
        "labels": sorted(name for name in names if name is not None),
    }
    return meta | new, table, pyarrow.Table.from_pylist(shards)
