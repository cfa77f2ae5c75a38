"""Reading a store: rows, latents, and use from other processes."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit import files
from mmdit.clips.source import SourceClip
from mmdit.errors import Refused
from mmdit.latents.plan import Planned
from mmdit.latents.shards import Recorded, write_shard, write_tables
from mmdit.latents.store import LatentStore

SHAPE = (2, 3, 4, 5)
SETTINGS = {"frames": 3, "size": [8, 10], "fps": 8.0}


def latent(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six clips in three shards."""
    recorded, plan = Recorded(), []
    for shard in range(3):
        rows: list[dict[str, Any]] = []
        tensors = {}
        for number in (2 * shard, 2 * shard + 1):
            clip = SourceClip(f"{number}.mp4", f"clip {number}", "ab"[number % 2], ["train", "test"][number // 4])
            plan.append(Planned(f"id{number}", clip))
            rows.append({"id": f"id{number}", "source": clip.path, "reason": None, "total": [0, 0], "square": [0, 60]})
            tensors[f"id{number}.mean"], tensors[f"id{number}.std"] = latent(number)
        recorded.add(shard, rows, write_shard(tmp_path, shard, SETTINGS, rows, tensors))
    write_tables(tmp_path, plan, recorded, SETTINGS, {"latent": {"shape": list(SHAPE)}, "codec": {}, "clip": {}})
    return tmp_path


def test_rows_latents_and_splits(folder: Path) -> None:
    store = LatentStore.open(str(folder))
    assert len(store) == 6 and store.labels == ["a", "b"] and store.latent_shape == SHAPE
    assert store.split("train") == [0, 1, 2, 3] and store.split("test") == [4, 5]
    for row in (5, 0, 3, 3, 1):
        mean, std = store.latent(row)
        assert torch.equal(mean, latent(row)[0]) and torch.equal(std, latent(row)[1])
    assert store.channel_mean.tolist() == [0.0, 0.0] and store.channel_std.tolist() == [0.0, 1.0]


def test_few_files_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit.latents.store._OPEN_SHARDS", 1)
    store = LatentStore.open(folder)
    for row in (0, 5, 2, 0, 1):
        assert torch.equal(store.latent(row)[0], latent(row)[0])
    assert len(store._files) == 1


def _sum(store: LatentStore, row: int, answer: Any) -> None:
    answer.put(float(store.latent(row)[0].double().sum()))


def test_other_processes_read_it(folder: Path) -> None:
    store = LatentStore.open(folder)
    wanted = float(store.latent(4)[0].double().sum())
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

    files.write_json(folder / "store.json", meta | {"format": 2})
    with pytest.raises(Refused, match=r"newer mmdit.*format 2.*at most 1"):
        LatentStore.open(folder)
    files.write_json(folder / "store.json", meta | {"counts": {"clips": 5}})
    with pytest.raises(Refused, match=r"damaged store.*index.parquet.*6 rows, expected 5"):
        LatentStore.open(folder)
    (folder / "store.json").write_text("{}")
    with pytest.raises(Refused, match=r"not a store's store.json"):
        LatentStore.open(folder)
    files.write_json(folder / "store.json", meta)
    (folder / "shards" / "00001.safetensors").unlink()
    with pytest.raises(Refused, match=r"damaged store.*00001.safetensors.*no file"):
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
    assert store.latent(0)[0].isfinite().all()
    with pytest.raises(Refused, match=r"damaged shard.*00002.safetensors"):
        store.latent(5)
