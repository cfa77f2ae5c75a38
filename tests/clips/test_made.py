"""The folder of made clips: the same from the same settings, whatever happened on the way."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from mmdit.clips import made
from mmdit.clips.made import make_clips, plan_clips, render
from mmdit.errors import Refused, Stopped

AXES = ("garment", "colour", "pattern", "motion", "background")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "whole"
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    return folder


def test_folder(whole: Path) -> None:
    rows = list(csv.DictReader((whole / "captions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["path"] for row in rows] == [f"clips/{at:06d}.mp4" for at in range(12)]
    assert tuple(rows[0]) == ("path", "caption", "label", "split", *AXES)
    for row, one in zip(rows, plan_clips(12, 3), strict=True):
        assert row == one.row()
        assert row["label"] == row["garment"] == one.garment
        assert row["caption"] == one.caption
        with av.open(str(whole / row["path"])) as container:
            assert container.streams.video[0].average_rate == 8
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert pictures.shape == (5, 32, 32, 3)
        assert np.abs(pictures.astype(int) - render(one, (32, 32), 5)).mean() < 6
    assert {row["split"] for row in rows} == set(made.SPLITS)
    assert not [name for name in contents(whole) if ".part-" in name]


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_clips(tmp_path / "two", 12, 3, (32, 32), 5, 8.0, workers=2, progress=lambda *at: seen.append(at))
    assert contents(tmp_path / "two") == contents(whole)
    assert seen == [(done, 12) for done in range(13)]


def test_what_is_missing_is_made_and_the_rest_is_kept(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    kept = (folder / "clips/000002.mp4").stat().st_mtime_ns
    (folder / "captions.csv").unlink()
    (folder / "clips/000004.mp4").unlink()
    (folder / "clips/000007.mp4").write_bytes(b"")  # as a power failure leaves it
    (folder / "clips/.part-1-000009.mp4").write_bytes(b"half")
    seen: list[int] = []
    make_clips(folder, 12, 3, (32, 32), 5, 8, progress=lambda done, count: seen.append(done))
    assert seen == [10, 11, 12]
    assert contents(folder) == contents(whole)
    assert (folder / "clips/000002.mp4").stat().st_mtime_ns == kept


@pytest.mark.parametrize("fault", ["made.json:written", "clips/000005.mp4:written",
                                   "clips/000005.mp4:renamed", "captions.csv:written"])  # fmt: skip
def test_killed_and_started_again(whole: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "killed"
    code = f"from mmdit.clips.made import make_clips; make_clips({str(folder)!r}, 12, 3, (32, 32), 5, 8)"
    surroundings = os.environ | {"MMDIT_FAULT": f"kill@{fault}"}
    ended = subprocess.run([sys.executable, "-c", code], env=surroundings, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert not (folder / "captions.csv").exists()
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    assert contents(folder) == contents(whole)


def test_a_dead_worker_and_a_full_disk_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "kill@clips/000005.mp4:begin")
    with pytest.raises(Stopped, match="worker ended"):
        make_clips(tmp_path / "a", 12, 3, (32, 32), 2, 8, workers=2)
    monkeypatch.setenv("MMDIT_FAULT", "full@clips/000005.mp4:written")
    with pytest.raises(Stopped, match="disk is full"):
        make_clips(tmp_path / "b", 12, 3, (32, 32), 2, 8)
    monkeypatch.delenv("MMDIT_FAULT")
    for name in "ab":
        assert not (tmp_path / name / "captions.csv").exists()
        make_clips(tmp_path / name, 12, 3, (32, 32), 2, 8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


BAD = [
    ({"count": 0}, "count, got 0"),
    ({"count": -3}, "count, got -3"),
    ({"count": 10**9}, "count"),
    ({"size": (63, 64)}, "63x64; use 64x64"),
    ({"size": (30, 64)}, "30x64.*use 32x64"),
    ({"size": (64, 4096)}, "use 64x1024"),
    ({"frames": 0}, "frames, got 0"),
    ({"frames": 10**6}, "at most 10922"),
    ({"fps": 0}, "fps, got 0"),
    ({"fps": float("nan")}, "fps, got nan"),
    ({"variety": 2}, "variety, got 2"),
    ({"workers": 0}, "workers, got 0"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    arguments = {"count": 4, "seed": 0, "size": (64, 48), "frames": 17, "fps": 8.0} | changes
    with pytest.raises(Refused, match=words):
        make_clips(tmp_path / "new", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 4}, "seed, got 4, expected 3"), ({"count": 13}, "count, got 13, expected 12"),
     ({"size": (32, 34)}, r"size, got \[32, 34\], expected \[32, 32\]"), ({"frames": 6}, "frames"),
     ({"fps": 9}, "fps")],
)  # fmt: skip
def test_other_settings_are_refused(whole: Path, changes: dict[str, int], words: str) -> None:
    before = contents(whole)
    arguments = {"count": 12, "seed": 3, "size": (32, 32), "frames": 5, "fps": 8.0} | changes
    with pytest.raises(Refused, match=words):
        make_clips(whole, **arguments)  # type: ignore[arg-type]
    assert contents(whole) == before


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.mp4").write_bytes(b"film")
    (tmp_path / "file").write_text("text")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/made.json").write_text("{")
    for name, words in (("mine", "holiday.mp4"), ("file", "not a folder"), ("file/in", "cannot be written"),
                        ("bad", "cannot be read")):  # fmt: skip
        with pytest.raises(Refused, match=words):
            make_clips(tmp_path / name, 2, 0, (32, 32), 2)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["holiday.mp4"]


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *rest: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)  # file modes do not stop the superuser, as whom tests may run
    with pytest.raises(Refused, match="cannot be written.*Permission denied"):
        make_clips(tmp_path / "new", 2, 0, (32, 32), 2)
