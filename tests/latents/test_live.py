"""Videos as a store: its rows and its latents are those of the store that `mmdit encode` makes of them."""

import logging
import os
import pickle
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from encoding import encode, read_here
from PIL import Image
from pooled import Pooled
from videos import write_waves

from mmdit.clips.buckets import Bucket
from mmdit.clips.source import find_source
from mmdit.clips.video import write_clip
from mmdit.clips.windows import Windows
from mmdit.errors import Refused, Stopped
from mmdit.latents.index import Store
from mmdit.latents.live import LiveStore
from mmdit.latents.plan import plan_source
from mmdit.latents.request import ClipRules, EncodeOptions, TokenBudget
from mmdit.latents.store import LatentStore

SHAPES: dict[str, Any] = {
    "one bucket": {"frames": 5, "size": (32, 48)},
    "mirrored": {"frames": 5, "size": (32, 48), "flip": True},
    "all windows": {"frames": 3, "size": (32, 48), "windows": Windows(None)},
    "buckets and images": {"buckets": (Bucket(5, 32, 48), Bucket(3, 48, 32), Bucket(1, 32, 32))},
    "a budget": {"buckets": (), "budget": TokenBudget((5,), 64)},
    "a stride": {"frames": 3, "size": (32, 48), "stride": 2},
}
ONLY_READING_TELLS = {"shard", "psnr", "source_frames", "source_fps", "source_height", "source_width", "reader"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of unlike length and shape in two splits, one of them twice, one damaged, and an image."""
    folder = write_waves(tmp_path_factory.mktemp("source"), 4)
    write_clip(folder / "long.mp4", np.full((9, 48, 32, 3), 99, np.uint8), 8)
    write_clip(folder / "short.mp4", np.full((2, 32, 48, 3), 50, np.uint8), 8)
    (folder / "same.mp4").write_bytes((folder / "01.mp4").read_bytes())
    (folder / "none.mp4").write_text("no video")
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(folder / "still.png")
    names = [*(f"0{number}.mp4" for number in range(4)), "long.mp4", "short.mp4", "same.mp4", "none.mp4", "still.png"]
    splits = ["train", "validation", *["train"] * 7]
    rows = [
        f"{name},a wave {i},{'ab'[i % 2]},{split}" for i, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    (folder / "captions.csv").write_text("\n".join(["path,caption,label,split", *rows]) + "\n")
    return folder


def live(source: Path, codec: Any = None, **changes: Any) -> LiveStore:
    if "buckets" not in changes:
        changes["buckets"] = (Bucket(changes.pop("frames", 5), *changes.pop("size", (32, 48))),)
    names = ("buckets", "stride", "windows", "flip", "budget")
    rules = ClipRules(fps=8.0, **{name: changes.pop(name) for name in names if name in changes})
    options = EncodeOptions(**{"dtype": "float32", "batch_size": 1, "workers": 1} | changes)
    codec = cast(Any, codec or Pooled())
    return LiveStore(plan_source(find_source(source), codec, rules, options, None, probed=True), codec, options)


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_waves(tmp_path_factory.mktemp("waves"), 5)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_rows_and_latents_are_those_of_the_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: dict[str, Any]
) -> None:
    read_here(monkeypatch)
    encode(source, tmp_path / "store", batch_size=1, max_skipped=9, **shapes)
    monkeypatch.undo()
    store, videos = LatentStore.open(tmp_path / "store"), live(source, **shapes)
    assert len(videos) == len(store) > 4
    assert videos.groups == store.groups and videos.labels == store.labels == ["a", "b"]
    for key in ("settings", "clip", "groups", "labels"):
        assert videos.meta[key] == store.meta[key], key
    assert videos.meta["counts"]["splits"] == store.meta["counts"]["splits"]
    assert videos.meta["codec"]["fingerprint"] == store.meta["codec"]["fingerprint"]
    unknown = ONLY_READING_TELLS | ({"end"} if "stride" in shapes else set())
    assert videos.table.column_names == store.table.column_names
    for name in store.table.column_names:
        if name in unknown:
            assert videos.table[name].null_count == len(videos), name
        elif name in ("speed", "end"):
            assert videos.table[name].to_pylist() == pytest.approx(store.table[name].to_pylist()), name
        else:
            assert videos.table[name].to_pylist() == store.table[name].to_pylist(), name
    assert videos.split("validation") == store.split("validation") and len(store.split("validation")) > 0
    assert videos.label_numbers().tolist() == store.label_numbers().tolist()
    assert_same(videos, store, range(len(store)))
    videos.close()


def assert_same(one: Store, other: Store, rows: Sequence[int]) -> None:
    for row, here, there in zip(rows, one.latents(rows), other.latents(rows), strict=True):
        assert here is not None and there is not None
        for part, wanted in zip(here, there, strict=True):
            assert part.dtype == wanted.dtype and torch.equal(part, wanted), row


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_vae_in_batches_of_another_size_gives_the_store_to_a_unit_in_the_last_place(
    waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    read_here(monkeypatch)
    encode(waves, tmp_path / "store", tiny.make_codec(), batch_size=2, psnr_every=0, dtype=dtype)
    monkeypatch.undo()
    store, videos = LatentStore.open(tmp_path / "store"), live(waves, tiny.make_codec(), batch_size=4, dtype=dtype)
    rows = [3, 0, 4, 1, 2, 0]
    unit = torch.finfo(getattr(torch, dtype)).eps
    for here, there in zip(videos.latents(rows), store.latents(rows), strict=True):
        assert here is not None and there is not None
        for part, wanted in zip(here, there, strict=True):
            assert part.dtype == wanted.dtype
            torch.testing.assert_close(part.float(), wanted.float(), rtol=unit, atol=1e-6)
    videos.close()


class Batches(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, clips: torch.Tensor) -> Any:
        self.sizes.append(tuple(clips.shape))
        return super().encode(clips)


def test_clips_of_one_shape_are_encoded_together(source: Path) -> None:
    codec = Batches()
    videos = live(source, codec, batch_size=3, **SHAPES["buckets and images"])
    rows = list(range(len(videos)))
    whole = videos.latents(rows)
    shapes = {group.frames: group.count for group in videos.groups if group.split == "train"}
    assert [size[0] for size in codec.sizes if size[2] == 5] == [3, 3] and shapes[5] == 5  # with the held-out one
    for row, latent in zip(reversed(rows), videos.latents(rows[::-1]), strict=True):
        for part, wanted in zip(latent or (), whole[row] or (), strict=True):
            assert torch.equal(part, wanted)
    videos.close()


class Small(Pooled):
    """A codec on a device that has room for two clips."""

    def encode(self, clips: torch.Tensor) -> Any:
        if len(clips) > 2:
            raise torch.OutOfMemoryError("no room")
        return super().encode(clips)


def test_out_of_memory_halves_the_batch(waves: Path) -> None:
    small, plain = live(waves, Small(), batch_size=5), live(waves)
    assert_same(small, plain, range(5))
    small.close()
    plain.close()


SABOTAGE = """
    from mmdit.clips import decode
    read = decode.read_request
    def sabotaged(request):
        if request.path.endswith("02.mp4"):
            import ctypes
            ctypes.PyDLL(None).sleep(1000)
        with open(LOG, "a") as log:
            log.write(request.path[-6:-4] + " ")
        return read(request)
    decode.read_request = sabotaged
"""


@pytest.fixture
def log_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is read is written down, and 02.mp4 hangs."""
    (tmp_path / "site").mkdir()
    code = textwrap.dedent(SABOTAGE).replace("LOG", repr(str(tmp_path / "log")))
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    yield tmp_path / "log"


def test_what_cannot_be_read_is_none_and_said_once(
    waves: Path, tmp_path: Path, log_of_reading: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in waves.glob("*.mp4"):
        (folder / path.name).write_bytes(path.read_bytes())
    videos = live(folder, deadline=3.0)
    data = bytearray((folder / "03.mp4").read_bytes())
    middle = data.index(b"mdat") + len(data) // 3
    data[middle : middle + 60] = bytes(60)
    (folder / "03.mp4").write_bytes(data)  # damaged after it was looked at
    with caplog.at_level(logging.WARNING):
        latents = videos.latents(range(5))
        again = videos.latents([2, 3, 1, 3])
    assert [latent is None for latent in latents] == [False, False, True, True, False]
    assert [latent is None for latent in again] == [True, True, False, True]
    assert [(skipped.source, skipped.id) for skipped in videos.skipped] == [
        (f"0{row}.mp4", videos.row(row)["id"]) for row in (2, 3)
    ]
    assert "hangs: no clip in 3 s" in videos.skipped[0].reason and "damaged" in videos.skipped[1].reason
    assert caplog.text.count("02.mp4 is left out of training: the decoder hangs") == 1
    assert caplog.text.count("03.mp4 is left out of training: damaged") == 1
    assert sorted(log_of_reading.read_text().split()) == ["00", "01", "01", "03", "04"]
    videos.close()


def test_what_is_read_ahead_is_read_once(waves: Path, log_of_reading: Path) -> None:
    videos = live(waves)
    videos.read_ahead([0, 1])
    videos.read_ahead([1, 4])
    assert all(latent is not None for latent in videos.latents([1, 0, 4, 3, 3]))
    assert sorted(log_of_reading.read_text().split()) == ["00", "01", "03", "04"]
    videos.close()


def test_latents_that_are_not_finite_are_skipped(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Pooled.encode

    def encode_badly(self: Pooled, clips: torch.Tensor) -> Any:
        posterior = plain(self, clips)
        posterior.mean[1, 0, 0, 0, 0] = 1e5  # too large for float16
        return posterior

    monkeypatch.setattr(Pooled, "encode", encode_badly)
    videos = live(waves, batch_size=5, dtype="float16")
    assert [latent is None for latent in videos.latents(range(5))] == [False, True, False, False, False]
    assert "not finite" in videos.skipped[0].reason
    videos.close()


def test_what_headers_show_is_dropped_and_said(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        videos = live(source)
    dropped = {skipped.source: skipped.reason for skipped in videos.skipped}
    assert set(dropped) == {"none.mp4", "short.mp4", "still.png"}
    assert dropped["short.mp4"].startswith("too short: 2 frames")
    assert "3 of 9 clips are left out (" in caplog.text and "2 too short" in caplog.text
    assert videos.meta["counts"]["skipped"] == 3
    videos.close()


def test_no_usable_clip_is_refused(source: Path) -> None:
    with pytest.raises(Refused, match=r"no usable clip, in .*, got 9 skipped, most of them \(8\) too short"):
        live(source, frames=50)


def test_it_stays_in_its_process(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = live(waves)
    with pytest.raises(TypeError, match="cannot be sent"):
        pickle.dumps(videos)
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    for ask in (videos.latents, videos.read_ahead):
        with pytest.raises(Refused, match=r"a worker process.*data\.workers"):
            ask([0])
    monkeypatch.undo()
    with pytest.raises(IndexError):
        videos.latents([5])
    videos.close()
    with pytest.raises(Stopped, match="have ended"):
        videos._ahead.take(videos._requests([0]))


def test_a_store_that_nobody_holds_ends_its_processes(waves: Path) -> None:
    videos = live(waves)
    videos.latents([0])
    children = [child.process for child in videos._ahead._reader._children]
    assert children and all(child.poll() is None for child in children)
    del videos
    assert all(child.poll() is not None for child in children)


def test_a_store_gives_several_latents_too(waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    encode(waves, tmp_path)
    store = LatentStore.open(tmp_path)
    for row, latent in zip([4, 1], store.latents([4, 1]), strict=True):
        assert latent is not None
        assert all(torch.equal(part, wanted) for part, wanted in zip(latent, store.latent(row), strict=True))
