"""A store of as many clips as wanted, without its latents; as a program, what it costs to open one."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from stores import ABOUT, SETTINGS

from mmdit import files
from mmdit.clips.source import SourceClip
from mmdit.latents.plan import Planned
from mmdit.latents.rows import ROW_GROUP
from mmdit.latents.shards import Recorded
from mmdit.latents.store import LatentStore
from mmdit.latents.tables import INDEX_ROWS, SHARD_TABLE_ROWS, as_parquet, write_tables

A_SHARD = 256
LATENT = [4, 5, 32, 32]


def write_big_store(folder: Path, clips: int) -> None:
    """The tables of a store of so many clips, with a few words of caption each; its shards are not there."""
    row = {
        "id": "0", "reason": None, "shard": 0, "frames": 17, "height": 256, "width": 256, "fps": 8.0, "latent": LATENT,
        "total": [0.0] * 4, "square": [1.0] * 4,
    }  # fmt: skip
    plan = [Planned("0", SourceClip("0.mp4", "caption", "coat"), 17, (256, 256), 8.0)]
    write_tables(folder, plan, Recorded({"0": row}), SETTINGS, ABOUT)
    meta = json.loads((folder / "store.json").read_text())
    meta["groups"][0]["count"] = meta["counts"]["clips"] = clips
    files.write_json(folder / "store.json", meta)
    with pyarrow.parquet.ParquetWriter(folder / "index.parquet", INDEX_ROWS) as writer:
        for first in range(0, clips, ROW_GROUP):
            numbers = range(first, min(first + ROW_GROUP, clips))
            columns = {name: pyarrow.nulls(len(numbers), INDEX_ROWS.field(name).type) for name in INDEX_ROWS.names}
            same = {"split": "train", "label": "coat", "fps": 8.0, "frames": 17, "height": 256, "width": 256,
                    "flip": False, "speed": 1.0, "latent": LATENT, "reader": "pyav"}  # fmt: skip
            columns |= {
                name: pyarrow.array([value] * len(numbers), INDEX_ROWS.field(name).type) for name, value in same.items()
            }
            columns["id"] = pyarrow.array([f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in numbers])
            columns["source"] = pyarrow.array([f"part-{n // 1000:05d}/{n:08d}.mp4" for n in numbers])
            columns["caption"] = pyarrow.array([f"clip {n}: a woman in a plain red coat walks left" for n in numbers])
            columns["shard"] = pyarrow.array(np.arange(first, first + len(numbers), dtype=np.int32) // A_SHARD)
            writer.write_table(pyarrow.table(columns, schema=INDEX_ROWS), row_group_size=ROW_GROUP)
    shards = [
        {"number": n, "name": f"{n:05d}.safetensors", "bytes": 1 << 24, "sha256": f"{n:064x}", "clips": A_SHARD}
        for n in range(-(-clips // A_SHARD))
    ]
    (folder / "shards.parquet").write_bytes(as_parquet(pyarrow.Table.from_pylist(shards, schema=SHARD_TABLE_ROWS)))


def measure(folder: Path, row: int) -> dict[str, Any]:
    """Opens the store, reads one row and where its latent is; what that took in this process, torch and all."""
    read: set[int] = set()
    plain = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, **options: Any) -> Any:
        read.add(group)
        return plain(self, group, **options)

    pyarrow.parquet.ParquetFile.read_row_group = counted
    began = time.monotonic()
    store = LatentStore.open(folder)
    opened = time.monotonic() - began
    known, (shard, id) = store.row(row), store.location(row)
    size = store.shards[shard]["bytes"]
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    place = (f"part-{row // 1000:05d}/{row:08d}.mp4", known["id"], row // A_SHARD, 1 << 24)
    right = (known["source"], id, shard, size) == place
    told = {"clips": len(store), "right": right, "groups": sorted(read), "opened": opened}
    return told | {"seconds": seconds, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
