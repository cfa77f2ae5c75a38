"""Stores at URLs, the cache of their shards, and reading by the workers of a DataLoader."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from stores import latent, write_store
from torch.utils.data import DataLoader

from mmdit.errors import Refused, Stopped
from mmdit.latents.cache import ShardCache
from mmdit.latents.place import Remote
from mmdit.latents.store import LatentStore

ORDER = [4, 5, 0, 1, 2, 3]  # the rows' numbers: test comes before train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{folder}"
    else:
        memory = fsspec.filesystem("memory")
        memory.put(str(folder), "/stores/mine", recursive=True)
        yield "memory://stores/mine"
        memory.rm("/stores", recursive=True)


def shard_bytes(folder: Path) -> int:
    return (folder / "shards" / "00000.safetensors").stat().st_size


def cached(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if not path.name.startswith(".lock"))


def test_a_store_at_a_url_is_read_like_a_folder(url: str, folder: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    store, local = LatentStore.open(url, cache), LatentStore.open(folder)
    assert not cache.folder.exists()  # opening fetches nothing
    assert len(store) == 6 and store.labels == local.labels and store.groups == local.groups
    assert store.table.equals(local.table) and store.row(3) == local.row(3)
    for row in (5, 0, 3):
        assert all(map(torch.equal, store.latent(row), local.latent(row)))
    assert cached(cache) == sorted(f"{facts['sha256']}-{facts['bytes']}.safetensors" for facts in store.shards.values())


def test_a_shard_is_fetched_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    fetched: list[Any] = []
    plain = ShardCache._fetch

    def counted(self: ShardCache, *rest: Any) -> None:
        fetched.append(rest)
        plain(self, *rest)

    monkeypatch.setattr(ShardCache, "_fetch", counted)
    for _ in range(2):
        store = LatentStore.open(url, cache)
        for row in range(6):
            store.latent(row)
    assert len(fetched) == 3


def test_the_cache_keeps_its_limit_and_what_was_taken_last(folder: Path, tmp_path: Path) -> None:
    size = shard_bytes(folder)
    cache = ShardCache(tmp_path / "cache", 2 * size + 10)
    store = LatentStore.open(f"file://{folder}", cache)
    names = [f"{store.shards[number]['sha256']}-{size}.safetensors" for number in range(3)]

    def read(number: int) -> None:
        LatentStore.open(f"file://{folder}", cache).latent(ORDER.index(2 * number))

    for number, kept in [(0, {0}), (1, {0, 1}), (0, {0, 1}), (2, {0, 2}), (1, {1, 2})]:
        read(number)
        assert cached(cache) == sorted(names[number] for number in kept)
        assert sum(path.stat().st_size for path in cache.folder.glob("*.safetensors")) <= cache.limit


def test_an_open_shard_is_never_thrown_away(folder: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * shard_bytes(folder) + 10)
    url = f"file://{folder}"
    store = LatentStore.open(url, cache)
    first, second = store.latent(0)[0], store.latent(2)[0]
    wanted = first.clone(), second.clone()
    with pytest.raises(Stopped, match=r"no room in the cache.*expected \d+ bytes together; raise MMDIT_CACHE_GB"):
        store.latent(4)
    assert torch.equal(first, wanted[0]) and torch.equal(second, wanted[1])
    store._files.clear()
    assert torch.equal(store.latent(4)[0], latent(2)[0])


def test_a_few_shards_hold_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "open_shards", 1)
    store = LatentStore.open(f"file://{folder}", ShardCache(tmp_path / "cache", shard_bytes(folder) + 10))
    for row in (0, 5, 2, 0, 1, 4):
        assert torch.equal(store.latent(row)[0], latent(ORDER[row])[0])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_shard_is_refused_and_not_kept(folder: Path, tmp_path: Path, damage: str) -> None:
    shard = folder / "shards" / "00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data[:-1] if damage == "cut" else data)
    cache = ShardCache(tmp_path / "cache", 10**6)
    store = LatentStore.open(f"file://{folder}", cache)
    with pytest.raises(Refused, match=r"damaged shard.*file://.*00001\.safetensors.*bytes with sha256"):
        store.latent(4)
    assert cached(cache) == []
    shard.unlink()
    with pytest.raises(Refused, match=r"cannot be fetched.*00001\.safetensors.*FileNotFoundError"):
        store.latent(4)


def test_what_a_dead_process_left_goes_first(folder: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", shard_bytes(folder) + 10)
    cache.folder.mkdir()
    (cache.folder / f".part-1-left-{shard_bytes(folder)}.safetensors").write_bytes(bytes(shard_bytes(folder)))
    LatentStore.open(f"file://{folder}", cache).latent(0)
    assert len(cached(cache)) == 1 and not cached(cache)[0].startswith(".part")


def test_refused_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"URL cannot be opened.*nosuch://"):
        LatentStore.open("nosuch://a/b")
    with pytest.raises(Refused, match=r"no whole latent store.*memory://empty, got none"):
        LatentStore.open("memory://empty")
    for text in ("much", "0", "-1"):
        monkeypatch.setenv("MMDIT_CACHE_GB", text)
        with pytest.raises(Refused, match="not a size for the cache.*MMDIT_CACHE_GB"):
            LatentStore.open("memory://empty")
    monkeypatch.setenv("MMDIT_CACHE_GB", "0.5")
    monkeypatch.setenv("MMDIT_CACHE", str(tmp_path / "here"))
    cache = ShardCache()
    assert (cache.folder, cache.limit) == (tmp_path / "here", 500_000_000)


def _read_all(folder: Path, cache: ShardCache, seed: int, answer: Any) -> None:
    try:
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
        for row in order * 15:
            store = LatentStore.open(f"file://{folder}", cache)
            if not torch.equal(store.latent(row)[0], latent(ORDER[row])[0]):
                raise ValueError(f"row {row}")
        answer.put("read")
    except BaseException as error:
        answer.put(repr(error))
        raise


def test_many_processes_share_a_cache_that_is_too_small(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", int(2.5 * shard_bytes(folder)))
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    processes = [context.Process(target=_read_all, args=(folder, cache, seed, answer)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [answer.get() for _ in processes] == ["read"] * 2
    held = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert held <= cache.limit and not list(cache.folder.glob(".part*"))


class Latents(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> torch.Tensor:
        assert self.store.row(row)["source"] == f"{ORDER[row]}.mp4"
        return self.store.latent(row)[0]


@pytest.mark.parametrize("place", ["folder", "file"])
def test_forked_loader_workers_read_it(folder: Path, tmp_path: Path, place: str) -> None:
    store = LatentStore.open(folder if place == "folder" else f"file://{folder}", ShardCache(tmp_path / "cache", 10**6))
    store.latent(0)  # so that the parent's handles are there to be inherited
    loader = DataLoader(Latents(store), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), torch.stack([latent(number)[0] for number in ORDER]))


SPAWNED = """
import sys
import torch
from torch.utils.data import DataLoader
from test_place import Latents
from mmdit.latents.cache import ShardCache
from mmdit.latents.store import LatentStore
if __name__ == "__main__":
    store = LatentStore.open(sys.argv[1], ShardCache(sys.argv[2], 10**6))
    loader = DataLoader(Latents(store), batch_size=6, num_workers=1, multiprocessing_context="spawn", timeout=60)
    torch.save(next(iter(loader)), sys.argv[3])
"""


def test_spawned_loader_workers_read_it(folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "program.py").write_text(SPAWNED)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "helpers"), os.environ.get("PYTHONPATH", "")]
    words = [sys.executable, "program.py", f"file://{folder}", "cache", "read.pt"]
    ended = subprocess.run(
        words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert torch.equal(torch.load(tmp_path / "read.pt"), torch.stack([latent(number)[0] for number in ORDER]))
    shutil.rmtree(tmp_path / "cache")
