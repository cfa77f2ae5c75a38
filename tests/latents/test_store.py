"""Reading a store: rows, columns, groups, latents, labels, and use from other processes."""

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from stores import SHAPE, id_of, latent, write_store

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents import rows
from mmdit.latents.place import Folder
from mmdit.latents.store import LatentStore

FORMAT_1 = Path(__file__).parents[1] / "assets" / "store_format_1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def latent_shapes(store: LatentStore) -> set[tuple[int, ...]]:
    return {group.latent for group in store.groups}


def test_rows_columns_latents_and_splits(folder: Path) -> None:
    store = LatentStore.open(str(folder))
    assert len(store) == 6 and store.labels == ["a", "b"] and latent_shapes(store) == {SHAPE}
    assert store.split("train") == range(2, 6) and store.split("test") == range(2) and not store.split("none")
    order = [4, 5, 0, 1, 2, 3]  # by split
    for row in (5, 0, 3, 3, 1):
        mean, std = store.latent(row)
        assert torch.equal(mean, latent(order[row])[0]) and torch.equal(std, latent(order[row])[1])
        known = store.row(row)
        assert (known["source"], known["caption"], known["colour"]) == (
            f"{order[row]}.mp4",
            f"clip {order[row]}",
            "red",
        )
        assert store.row_of(known["id"]) == row
    assert store.column("id", 1, 3).to_pylist() == [id_of(number) for number in order[1:4]]
    assert store.column("source", 4).to_pylist() == ["2.mp4", "3.mp4"] == store.table["source"].to_pylist()[4:]
    assert store.column("source", 6).to_pylist() == [] == store.column("source", 2, 0).to_pylist()
    assert store.label_numbers().tolist() == [0, 1] * 3 and store.label_numbers(1, 2).tolist() == [1, 0]
    for wrong in (lambda: store.row(6), lambda: store.row(-1), lambda: store.latent(6), lambda: store.column("x")):
        with pytest.raises(IndexError):
            wrong()
    with pytest.raises(Refused, match=r"no such clip.*got nothing"):
        store.row_of("nothing")


def test_statistics_are_those_of_drawn_latents(tmp_path: Path) -> None:
    shapes = {1: (2, 1, 4, 6), 4: (2, 5, 2, 2)}
    store = LatentStore.open(write_store(tmp_path, shapes))
    pairs = [latent(number, shapes.get(number, SHAPE)) for number in range(6)]
    means, stds = (torch.cat([pair[i].flatten(1).double() for pair in pairs], 1) for i in (0, 1))
    assert torch.allclose(store.channel_mean.double(), means.mean(1))
    variance = (means**2 + stds**2).mean(1) - means.mean(1) ** 2
    assert torch.allclose(store.channel_std.double(), variance.sqrt())


def test_rows_of_a_group_lie_together(tmp_path: Path) -> None:
    shapes = {1: (2, 1, 4, 5), 2: (2, 3, 2, 5), 3: (2, 1, 4, 5)}
    store = LatentStore.open(write_store(tmp_path, shapes))
    groups = [(group.split, group.latent, group.rows) for group in store.groups]
    assert groups == [
        ("test", SHAPE, range(2)),
        ("train", (2, 1, 4, 5), range(2, 4)),
        ("train", (2, 3, 2, 5), range(4, 5)),
        ("train", SHAPE, range(5, 6)),
    ]
    assert store.split("train") == range(2, 6)
    for group in store.groups:
        for row in group.rows:
            known = store.row(row)
            assert store.latent(row)[0].shape == group.latent == tuple(known["latent"])
            assert (known["split"], known["frames"], known["height"]) == (group.split, group.frames, group.height)
    with pytest.raises(Refused, match="several shapes or frame rates"):
        _ = store.clip


def test_opening_reads_no_rows_and_looks_at_no_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "shards")
    (folder / "shards").mkdir()

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(pyarrow.parquet, "read_table", read)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", read)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_groups", read)
    store = LatentStore.open(folder)
    assert len(store) == 6 and store.split("test") == range(2) and latent_shapes(store) == {SHAPE}


def test_rows_are_read_by_row_groups_with_a_bounded_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatentStore.open(folder).table
    pyarrow.parquet.write_table(table, folder / "index.parquet", row_group_size=2)
    store = LatentStore.open(folder)
    read: list[int] = []
    plain = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return plain(self, group, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    assert [store.row(row) for row in (0, 1, 4)] == table.take([0, 1, 4]).to_pylist()
    assert read == [0, 2]
    monkeypatch.setattr(rows, "_CACHE_BYTES", 1)
    assert [store.row(row)["id"] for row in range(6)] == table["id"].to_pylist()
    assert len(store._index._parts) == 1
    for first in range(6):
        for count in range(7 - first):
            assert store.column("id", first, count).to_pylist() == table["id"].to_pylist()[first : first + count]
    assert store.row_of(table["id"][5].as_py()) == 5


def test_few_files_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "open_shards", 1)
    store = LatentStore.open(folder)
    for row in (0, 5, 2, 0, 1):
        assert torch.equal(store.latent(row)[0], latent([4, 5, 0, 1, 2, 3][row])[0])
    assert len(store._files) == 1


def test_latents_are_views_of_the_mapped_file(folder: Path) -> None:
    store = LatentStore.open(folder)
    first, again = store.latent(3)[0], store.latent(3)[0]
    assert first.data_ptr() == again.data_ptr()


def _sum(store: LatentStore, row: int, answer: Any) -> None:
    answer.put((float(store.latent(row)[0].double().sum()), store.row(row)["id"]))


def test_other_processes_read_it(folder: Path) -> None:
    store = LatentStore.open(folder)
    wanted = (float(store.latent(4)[0].double().sum()), store.row(4)["id"])
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=_sum, args=(store, 4, answer))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and answer.get() == wanted


def test_it_is_opened_again_where_it_is_sent(folder: Path) -> None:
    """What spawn does to it, without the time that a new interpreter takes."""
    store = LatentStore.open(folder)
    mean = store.latent(4)[0]
    again = pickle.loads(pickle.dumps(store))
    assert not again._files and torch.equal(again.latent(4)[0], mean)


def test_refusals(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(Refused, match=r"got no such folder.*mmdit encode"):
        LatentStore.open(folder / "none")
    with pytest.raises(Refused, match=r"got none;.*mmdit encode"):
        LatentStore.open(tmp_path_factory.mktemp("empty"))
    meta = json.loads((folder / "store.json").read_text())

    files.write_json(folder / "store.json", meta | {"format": 3})
    with pytest.raises(Refused, match=r"newer mmdit.*format 3.*at most 2"):
        LatentStore.open(folder)
    for change in ({"counts": {"clips": 5}}, {"groups": meta["groups"][:1]}, {"groups": meta["groups"][::-1]}):
        files.write_json(folder / "store.json", meta | change)
        with pytest.raises(Refused, match=r"damaged store.*index.parquet.*6 rows, expected \d"):
            LatentStore.open(folder)
    (folder / "store.json").write_text("{}")
    with pytest.raises(Refused, match=r"not a store's store.json"):
        LatentStore.open(folder)
    files.write_json(folder / "store.json", meta)
    (folder / "shards" / "00001.safetensors").unlink()
    store = LatentStore.open(folder)
    with pytest.raises(Refused, match=r"damaged store.*00001.safetensors.*no file"):
        store.latent(5)
    for name in ("shards.parquet", "index.parquet"):
        os.truncate(folder / name, 100)
        with pytest.raises(Refused, match=rf"damaged store.*{name}"):
            LatentStore.open(folder)
    (folder / "store.json").unlink()
    with pytest.raises(Refused, match="an unfinished one"):
        LatentStore.open(folder)


def test_a_shard_with_a_bad_header_is_named(folder: Path) -> None:
    path = folder / "shards" / "00002.safetensors"
    data = bytearray(path.read_bytes())
    data[:8] = (100 << 20).to_bytes(8, "little")
    path.write_bytes(data)
    store = LatentStore.open(folder)
    assert store.latent(2)[0].isfinite().all()
    with pytest.raises(Refused, match=r"damaged shard.*00002.safetensors.*verify --fix"):
        store.latent(0)


@pytest.mark.parametrize("bad", ["c", "", 2, -1, 1.5])
def test_a_label_that_is_not_among_the_names_is_refused_with_its_row(folder: Path, bad: Any) -> None:
    """The null class is number 2 here: no label leads there."""
    table = LatentStore.open(folder).table
    if isinstance(bad, str):
        labels = pyarrow.array(["a", "b", "a", None, bad, "b"])
    else:
        labels = pyarrow.array([type(bad)(0), type(bad)(1), bad, None, bad, type(bad)(0)])
    table = table.set_column(table.column_names.index("label"), "label", labels)
    pyarrow.parquet.write_table(table, folder / "index.parquet")
    store = LatentStore.open(folder)
    with pytest.raises(Refused, match=r"label that is not among the names.*row [04], got .*one of the 2 labels"):
        store.label_numbers()
    if isinstance(bad, str):
        assert store.label_numbers(0, 4).tolist() == [0, 1, 0, -1]


def test_a_store_of_format_1_still_reads() -> None:
    store = LatentStore.open(FORMAT_1)
    assert store.meta["format"] == 1
    assert len(store) == 4 and store.labels == ["coat", "dress"] and latent_shapes(store) == {(3, 3, 2, 3)}
    assert store.clip == {"frames": 3, "size": [16, 24], "fps": 8.0}
    assert store.split("test") == range(1) and store.split("train") == range(1, 4)
    assert store.column("source").to_pylist() == ["3.mp4", "0.mp4", "1.mp4", "2.mp4"]
    first = store.row(0)
    assert (first["caption"], first["label"], first["colour"], first["shard"]) == ("clip 3", "coat", "red", 1)
    assert (first["flip"], first["stride"], first["speed"]) == (False, None, 1.0)
    assert store.label_numbers().tolist() == [0, 1, 0, 1]
    means, stds = zip(*(store.latent(row) for row in range(4)), strict=True)
    assert all(mean.dtype == torch.float16 and mean.isfinite().all() for mean in means)
    assert torch.allclose(store.channel_mean, torch.stack(means).float().mean((0, 2, 3, 4)), atol=1e-3)
    assert torch.equal(stds[0], means[0].abs() / 2)  # as the codec that made it has it
    assert torch.equal(pickle.loads(pickle.dumps(store)).latent(2)[0], means[2])


def test_a_store_of_format_1_is_not_added_to(tmp_path: Path) -> None:
    from mmdit.latents.shards import read_shards

    shutil.copytree(FORMAT_1, tmp_path / "store")
    settings = {"codec": "pooled", "dtype": "float16", "tiling": None}
    for _ in range(2):
        with pytest.raises(Refused, match=r"older format.*got format 1, expected format 2; name another --out"):
            read_shards(tmp_path / "store", settings)
        (tmp_path / "store" / "store.json").unlink(missing_ok=True)
