"""Faults in a latent store: damaged shards and tables, values that are not finite, another codec, kills while pruning
and repairing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from kills import killed_at
from pooled import Pooled
from stores import latent, write_store

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.layout import shard_paths
from mmdit.latents.prune import prune_store
from mmdit.latents.store import LatentStore
from mmdit.latents.verify import check_codec, remove_damaged, verify_store

ORDER = [4, 5, 0, 1, 2, 3]
FORMAT_1 = Path(__file__).parents[1] / "assets" / "store_format_1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x01
    path.write_bytes(data)


def change_latent(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the last shard, and the recorded size and hash with it, as a faulty writer would have."""
    import hashlib

    path = shard_paths(folder, 2)[0]
    tensors = {name: value.clone() for name, value in safetensors.torch.load_file(path).items()}
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rows_path = shard_paths(folder, 2)[1]
    table = pyarrow.parquet.read_table(rows_path)
    about = json.loads(table.schema.metadata[b"shard"]) | facts
    metadata = table.schema.metadata | {b"shard": json.dumps(about).encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), rows_path)
    shards = pyarrow.parquet.read_table(folder / "shards.parquet")
    rows = shards.to_pylist()
    rows[2] |= facts
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=shards.schema), folder / "shards.parquet")


def change_index(folder: Path, column: str, row: int, value: Any) -> None:
    table = pyarrow.parquet.read_table(folder / "index.parquet")
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    table = table.set_column(place, table.schema.field(column), pyarrow.array(values, table.schema.field(column).type))
    pyarrow.parquet.write_table(table, folder / "index.parquet")


def said(folder: Path) -> list[str]:
    return list(map(str, verify_store(folder).damages))


def test_a_sound_store(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify_store(folder, lambda *numbers: told.append(numbers))
    assert (report.clips, report.shards, report.damages, told) == (6, 3, [], [(1, 3), (2, 3), (3, 3)])
    assert report.bytes == sum(path.stat().st_size for path in (folder / "shards").glob("*.safetensors"))
    assert verify_store(FORMAT_1).damages == []


@pytest.mark.parametrize("place", [-1, 400, 9], ids=["data", "middle", "header"])
def test_a_flipped_byte_is_found_and_named(folder: Path, place: int) -> None:
    flip(shard_paths(folder, 1)[0], place)
    (damage,) = verify_store(folder).damages
    assert damage.shard == 1 and "shards/00001.safetensors: its bytes have changed" in str(damage)
    assert "2 clips, the first is 2.mp4" in str(damage)


def test_a_cut_or_missing_file_is_found(folder: Path) -> None:
    os.truncate(shard_paths(folder, 0)[0], 200)
    shard_paths(folder, 1)[0].unlink()
    shard_paths(folder, 2)[1].unlink()
    report = verify_store(folder)
    assert report.shards_damaged == [0, 1, 2]
    words = list(map(str, report.damages))
    assert "00000.safetensors: 200 bytes" in words[0] and "recorded; 2 clips, the first is 0.mp4" in words[0]
    assert "00001.safetensors: cannot be read" in words[1] and "00002.parquet: cannot be read" in words[2]


def test_a_latent_that_is_not_finite_is_found_and_its_clip_named(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = LatentStore.open(folder).row(1)["id"] + ".std"
        tensors[name][0, 0, 0, 0] = float("nan")

    change_latent(folder, spoil)
    (line,) = said(folder)
    assert "00002.safetensors: 5.mp4 (row 1)" in line and line.endswith(".std is not finite")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(next(iter(tensors))), "is not there"),
        (lambda tensors: tensors.update({name: x.half() for name, x in tensors.items()}), "is torch.float16 of"),
        (lambda tensors: tensors.update({name: x[:, :1].clone() for name, x in tensors.items()}), "of shape [2, 1, 4"),
    ],
)
def test_latents_that_are_not_what_their_rows_say_are_found(folder: Path, change: Any, words: str) -> None:
    change_latent(folder, change)
    assert words in said(folder)[0]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("label", "c", "label that is not among the names"),
        ("split", "other", "split ['test', 'other'] in rows 0 on, test in store.json"),
        ("frames", 9, "frames [3, 9] in rows 0 on, 3 in store.json"),
        ("shard", 7, "shards ['7'] are not in shards.parquet"),
    ],
)
def test_an_index_that_does_not_fit_is_found(folder: Path, column: str, value: Any, words: str) -> None:
    change_index(folder, column, 1, value)
    assert words in " ".join(said(folder)) and verify_store(folder).shards_damaged == []


def test_a_clip_twice_is_found_with_both_rows(folder: Path) -> None:
    row = LatentStore.open(folder).row(2)
    for column in ("id", "source", "shard"):
        change_index(folder, column, 4, row[column])
    assert "rows 2 and 4 are one clip twice, of 0.mp4" in said(folder)[0]


@pytest.mark.parametrize("name", ["index.parquet", "shards.parquet", "quarantine.parquet"])
def test_a_damaged_table_is_found(folder: Path, name: str) -> None:
    path = folder / name
    flip(path, 60 if name != "quarantine.parquet" else 6)
    try:
        words = " ".join(said(folder))
    except Refused as error:
        words = str(error)
    if name != "quarantine.parquet":  # an empty table has no pages to damage
        assert name in words, words


def test_latents_of_another_codec_are_refused_by_fingerprint(folder: Path) -> None:
    with pytest.raises(Refused, match=r"another codec.*got codec fingerprint other, expected made \(made\)"):
        check_codec(LatentStore.open(folder), Pooled("other"))
    check_codec(LatentStore.open(folder), Pooled("made"))


def test_what_is_damaged_is_taken_out(folder: Path) -> None:
    flip(shard_paths(folder, 1)[0], -1)
    assert remove_damaged(folder, verify_store(folder)) == 1
    assert sorted(path.name for path in (folder / "shards").iterdir()) == [
        "00000.parquet", "00000.safetensors", "00002.parquet", "00002.safetensors",
    ]  # fmt: skip
    with pytest.raises(Refused, match="an unfinished one"):
        LatentStore.open(folder)


def test_loader_workers_do_not_hang_on_a_damaged_shard(folder: Path) -> None:
    from torch.utils.data import DataLoader

    os.truncate(shard_paths(folder, 1)[0], 100)
    store = LatentStore.open(folder)
    loader = DataLoader(_Latents(store), num_workers=1, multiprocessing_context="fork", timeout=60)
    with pytest.raises(Exception, match=r"damaged store.*00001\.safetensors"):
        list(loader)


class _Latents(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.store.latent(row)[0]


def with_unused(folder: Path) -> Path:
    """A store of six clips of which three are not used any more: one of shard 0, and both of shard 1."""
    return write_store(folder, left_out={0, 2, 3})


def is_whole(folder: Path) -> None:
    store = LatentStore.open(folder)
    rows = {store.row(row)["source"]: row for row in range(len(store))}
    assert rows.keys() == {"1.mp4", "4.mp4", "5.mp4"}
    for source, row in rows.items():
        assert torch.equal(store.latent(row)[0], latent(int(source[0]))[0])


def test_pruning_says_what_goes_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = with_unused(tmp_path / "store")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    told = prune_store(folder, dry_run=True)
    assert before == {path: path.read_bytes() for path in before}
    assert told.sources == ["0.mp4", "2.mp4", "3.mp4"] and len(told.ids) == 3
    assert told.bytes == 3 * 2 * latent(0)[0].nbytes
    kept = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert prune_store(folder) == told
    is_whole(folder)
    assert verify_store(folder).damages == [] and verify_store(folder).shards == 2
    assert kept - sum(path.stat().st_size for path in folder.rglob("*.safetensors")) >= told.bytes
    assert prune_store(folder).ids == []


def test_killed_at_every_write_of_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune_store(with_unused(tmp_path / "whole"))
    point, killed = 0, True
    while killed:
        point += 1
        folder = with_unused(tmp_path / str(point))
        killed = killed_at(monkeypatch, f"kill@#{point}", lambda: prune_store(folder))  # noqa: B023
        is_whole(folder)
        prune_store(folder)
        is_whole(folder)
        assert verify_store(folder).damages == [], point
        assert not list(folder.rglob(".part*")) and verify_store(folder).shards == 2
        shutil.rmtree(folder)
    assert point - 1 == 3 * (2 + 3)  # a shard's two files, the shards' table twice, the index; three stages each


def test_a_store_in_use_is_left_alone(folder: Path) -> None:
    with files.lock(folder):
        for work in (lambda: prune_store(folder), lambda: remove_damaged(folder, verify_store(folder))):
            with pytest.raises(Refused, match="the folder is in use"):
                work()
