"""What is cut from the sources: buckets, windows, mirrored clips, strides, images; what is dropped, with reasons."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from encoding import encode, read_here
from PIL import Image
from pooled import Pooled

from mmdit.clips.buckets import Bucket
from mmdit.clips.video import write_clip
from mmdit.clips.windows import Windows
from mmdit.errors import Refused
from mmdit.latents.facts import read_facts
from mmdit.latents.request import ClipRules, TokenBudget
from mmdit.latents.store import LatentStore
from mmdit.report.store import read_original

FPS = 8


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)


def video(path: Path, frames: int, height: int = 32, width: int = 48) -> None:
    """Each frame is of one gray, 10 brighter than the one before; the left half is darker."""
    gray = np.full((frames, height, width, 3), 20, np.uint8)
    gray[:, :, width // 2 :] += 20
    write_clip(path, gray + (10 * np.arange(frames, dtype=np.uint8))[:, None, None, None], FPS)


def brightness(store: LatentStore, row: int) -> list[int]:
    """Of the left half of each frame, in steps of the fixture: the number of the frame."""
    mean = store.latent(row)[0].float().mean(0)  # (frame, height, width)
    left = mean[:, :, : mean.shape[2] // 2].mean((1, 2))
    return [round(((value + 1) * 127.5 - 20) / 10) for value in left.tolist()]


def rows(store: Path) -> tuple[LatentStore, list[dict[str, Any]]]:
    opened = LatentStore.open(store)
    return opened, [opened.row(number) for number in range(len(opened))]


def reasons(store: Path) -> dict[str, str]:
    table = pyarrow.parquet.read_table(store / "quarantine.parquet").to_pylist()
    return {row["source"]: row["reason"] for row in table}


@pytest.mark.parametrize(
    ("windows", "starts"),
    [(Windows(), [0.0]), (Windows(3), [0.0, 0.5, 1.0]), (Windows(None), [0.0, 0.625]), (Windows(None, 0.25), None)],
)
def test_windows_of_a_video(tmp_path: Path, windows: Windows, starts: list[float] | None) -> None:
    video(tmp_path / "in" / "a.mp4", 13)
    encode(tmp_path / "in", tmp_path / "store", windows=windows)
    store, found = rows(tmp_path / "store")
    starts = [number / 4 for number in range(5)] if starts is None else starts
    assert [row["start"] for row in found] == starts
    for number, start in enumerate(starts):
        first = round(start * FPS)
        assert brightness(store, number) == list(range(first, first + 5))


def test_windows_stay_in_the_span_that_a_table_gives(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 20)
    (tmp_path / "in" / "captions.csv").write_text("path,start,end\na.mp4,0.5,1.75\na.mp4,1.75,2.0\n")
    report = encode(tmp_path / "in", tmp_path / "store", windows=Windows(None))
    store, found = rows(tmp_path / "store")
    assert [row["start"] for row in found] == [0.5, 1.125] and brightness(store, 1) == [9, 10, 11, 12, 13]
    assert report.reasons == {"too short": 1}
    assert reasons(tmp_path / "store")["a.mp4"] == "too short: 3 frames at the wanted rate, the shortest bucket has 5"


def test_each_source_goes_into_the_bucket_that_suits_it(tmp_path: Path) -> None:
    source = tmp_path / "in"
    video(source / "high.mp4", 9, 96, 64)
    video(source / "wide.mp4", 9, 64, 96)
    video(source / "short.mp4", 6, 64, 96)
    video(source / "tiny.mp4", 2, 64, 96)
    Image.fromarray(np.full((50, 70, 3), 100, np.uint8)).save(source / "still.png")
    (source / "bad.mp4").write_text("no video")
    buckets = tuple(map(Bucket.parse, ("9x48x32", "9x32x48", "5x32x48", "1x32x48")))
    report = encode(source, tmp_path / "store", buckets=buckets)
    store, found = rows(tmp_path / "store")
    shapes = {row["source"]: (row["frames"], row["height"], row["width"]) for row in found}
    assert shapes == {
        "high.mp4": (9, 48, 32), "wide.mp4": (9, 32, 48), "short.mp4": (5, 32, 48), "tiny.mp4": (1, 32, 48),
        "still.png": (1, 32, 48),
    }  # fmt: skip
    assert reasons(tmp_path / "store") == {"bad.mp4": reasons(tmp_path / "store")["bad.mp4"]} and report.skipped == 1
    groups = [(group.frames, group.height, group.width, group.count) for group in store.groups]
    assert groups == [(1, 32, 48, 2), (5, 32, 48, 1), (9, 32, 48, 1), (9, 48, 32, 1)]
    for number, row in enumerate(found):
        assert tuple(store.latent(number)[0].shape) == (3, row["frames"], row["height"] // 8, row["width"] // 8)


def test_too_short_for_any_bucket(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 9)
    video(tmp_path / "in" / "b.mp4", 4)
    encode(tmp_path / "in", tmp_path / "store", buckets=(Bucket(9, 32, 48), Bucket(5, 32, 48)))
    assert reasons(tmp_path / "store") == {"b.mp4": "too short: 4 frames at the wanted rate, the shortest bucket has 5"}


def test_mirrored_clips_are_rows_of_their_own(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 5)
    (tmp_path / "in" / "a.txt").write_text("brighter on the right")
    report = encode(tmp_path / "in", tmp_path / "store", flip=True)
    store, found = rows(tmp_path / "store")
    assert report.kept == 2 and [row["flip"] for row in found] == [False, True]
    assert {row["caption"] for row in found} == {"brighter on the right"}
    plain, mirrored = (store.latent(number)[0] for number in range(2))
    torch.testing.assert_close(plain.flip(-1), mirrored, atol=0.02, rtol=0)
    assert (plain - mirrored).abs().mean() > 0.05


def test_every_second_frame_is_twice_the_speed(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 12)
    report = encode(tmp_path / "in", tmp_path / "store", stride=2)
    store, found = rows(tmp_path / "store")
    assert brightness(store, 0) == [0, 2, 4, 6, 8] and found[0]["stride"] == 2
    assert found[0]["speed"] == pytest.approx(2.0) and report.speeds == pytest.approx((2.0, 2.0, 2.0))
    report = encode(tmp_path / "in", tmp_path / "all", stride=2, windows=Windows(None), frames=3, max_skipped=0)
    store, found = rows(tmp_path / "all")
    assert [brightness(store, number) for number in range(len(store))] == [[0, 2, 4], [6, 8, 10]]


def test_buckets_within_a_budget_of_tokens(tmp_path: Path) -> None:
    video(tmp_path / "in" / "high.mp4", 9, 96, 64)
    video(tmp_path / "in" / "wide.mp4", 9, 64, 96)
    encode(tmp_path / "in", tmp_path / "store", buckets=(), budget=TokenBudget((5,), 5 * 6))
    _, found = rows(tmp_path / "store")
    # a token is 16x16 pixels of a frame here
    assert {row["source"]: (row["height"], row["width"]) for row in found} == {
        "high.mp4": (48, 32), "wide.mp4": (32, 48),
    }  # fmt: skip


def test_no_room_for_a_picture(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 9)
    with pytest.raises(Refused, match="no room for a picture"):
        encode(tmp_path / "in", tmp_path / "store", buckets=(), budget=TokenBudget((5,), 4))


def test_members_of_a_tar_file_are_encoded_in_place(tmp_path: Path) -> None:
    """The same latents, under the same ids, as of the files themselves; the page finds the originals again."""
    source = tmp_path / "in"
    for number in range(3):
        video(source / f"{number}.mp4", 5 + number)
        (source / f"{number}.txt").write_text(f"clip {number}")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "box.tar", "w") as box:
        for path in sorted(source.iterdir()):
            box.add(path, path.name)
    encode(source, tmp_path / "files")
    encode(tmp_path / "tars", tmp_path / "members", flip=True)
    files, of_files = rows(tmp_path / "files")
    members, of_members = rows(tmp_path / "members")
    assert not list(tmp_path.glob("tars/*.mp4"))
    plain = [row for row in of_members if not row["flip"]]
    assert [row["id"] for row in plain] == [row["id"] for row in of_files]
    assert [row["caption"] for row in plain] == ["clip 0", "clip 1", "clip 2"]
    assert torch.equal(files.latent(1)[0], members.latent(members.row_of(of_files[1]["id"]))[0])
    facts = read_facts(tmp_path / "members")
    for row in of_members:
        part = facts[row["source"]].part
        assert part is not None and part.file == "box.tar"
        original = read_original(row, tmp_path / "tars", part)
        again = read_original(row | {"source": row["source"].removeprefix("box.tar/")}, source, None)
        assert original is not None and again is not None and (original == again).all()
    assert read_original(of_files[0] | {"source": "gone.mp4"}, source, None) is None


def test_sources_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "in", tmp_path / "store"
    video(source / "a.mp4", 9)
    (source / "bad.mp4").write_text("no video")
    buckets = (Bucket(5, 32, 48), Bucket(1, 32, 48))
    encode(source, store, buckets=buckets)
    before = read_facts(store)
    assert before["a.mp4"].probed is not None and before["bad.mp4"].reason is not None
    monkeypatch.setattr("mmdit.latents.facts._AT_A_TIME", None)
    monkeypatch.setattr("pooled.probe", None)
    assert encode(source, store, buckets=buckets).encoded == 0
    monkeypatch.undo()
    read_here(monkeypatch)
    video(source / "a.mp4", 7)  # another size or time of change
    assert encode(source, store, buckets=buckets).encoded == 1
    assert read_facts(store)["a.mp4"].sha256 != before["a.mp4"].sha256


def test_badly_reconstructed_clips_and_codecs(tmp_path: Path) -> None:
    video(tmp_path / "in" / "a.mp4", 5)
    y, x = np.mgrid[0:32, 0:48]
    board = np.broadcast_to(((x + y) % 2 * 255)[None, :, :, None], (5, 32, 48, 3)).astype(np.uint8)
    write_clip(tmp_path / "in" / "board.mp4", board, FPS)  # too fine for the codec
    report = encode(tmp_path / "in", tmp_path / "store", psnr_floor=20.0)
    assert report.reasons == {"badly reconstructed": 1}
    assert "dB PSNR, the floor is 20" in reasons(tmp_path / "store")["board.mp4"]
    (tmp_path / "in" / "a.mp4").unlink()
    with pytest.raises(Refused, match=r"does not give the probe clip back.*dB PSNR, expected at least 20 dB"):
        encode(tmp_path / "in", tmp_path / "other", psnr_floor=20.0)


class Small(Pooled):
    """A codec on a device that has room for two clips."""

    def encode(self, clips: torch.Tensor) -> Any:
        if len(clips) > 2:
            raise torch.OutOfMemoryError("no room")
        return super().encode(clips)


def test_out_of_memory_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        video(tmp_path / "in" / f"{number}.mp4", 5 + number)
    encode(tmp_path / "in", tmp_path / "whole", batch_size=5, shard_size=5)
    encode(tmp_path / "in", tmp_path / "store", Small(), batch_size=5, shard_size=5)
    for name in ("index.parquet", "shards/00000.safetensors"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(Small, "encode", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(Exception, match=r"out of memory, in 0\.mp4, got 1 clip of 5x32x48 a batch.*smaller buckets"):
        encode(tmp_path / "in", tmp_path / "none", Small())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": ()}, "impossible clip"),
        ({"buckets": (Bucket(5, 32, 48),) * 2}, "same bucket twice"),
        ({"budget": TokenBudget((5,), 99)}, "impossible clip"),
        ({"stride": 0}, "stride is out of range"),
        ({"fps": float("nan")}, "rate of frames"),
    ],
)
def test_impossible_rules_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        ClipRules(**{"buckets": (Bucket(5, 32, 48),), "fps": 8.0} | changes)
