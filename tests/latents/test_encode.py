"""Encoding a folder: what the store holds, what is done again and what is not, and what is counted."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from encoding import contents, read_here
from encoding import encode as run
from pooled import Pooled

from mmdit.clips.buckets import Bucket
from mmdit.clips.part import Part
from mmdit.clips.source import SourceClip
from mmdit.clips.video import frames_to_clip, write_clip
from mmdit.errors import OverBudget, Refused, Stopped
from mmdit.latents import batches, facts
from mmdit.latents.codec import Posterior
from mmdit.latents.facts import find_facts
from mmdit.latents.plan import plan_clips
from mmdit.latents.report import TooManySkipped
from mmdit.latents.request import ClipRules
from mmdit.latents.store import LatentStore


@pytest.fixture(autouse=True)
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" not in request.node.name:
        read_here(monkeypatch)


def clip(number: int, frames: int = 5) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0:32, 0:48]
    waves = [[np.sin((x * (c + 1) + y * number + 3 * t) / 20) for c in range(3)] for t in range(frames)]
    return (np.moveaxis(np.array(waves), 1, -1) * 100 + 128).astype(np.uint8)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Seven clips, number 3 too short, number 5 no video at all, and a table about them."""
    folder = tmp_path / "videos"
    for number in range(7):
        write_clip(folder / f"{number}.mp4", clip(number, 2 if number == 3 else 5), 8)
    (folder / "5.mp4").write_text("no video")
    lines = ["path,caption,label,split,colour,fps"]
    for number in range(7):
        split = "validation" if number == 6 else ""
        lines.append(f"{number}.mp4,clip {number},{'coat' if number % 2 else 'dress'},{split},red,24")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def test_the_store_holds_what_the_folder_has(videos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    report = run(videos, tmp_path / "store", codec_name="pooled", progress=lambda *numbers: told.append(numbers))
    assert (report.planned, report.kept, report.skipped, report.encoded) == (7, 5, 2, 7)
    assert report.reasons == {"too short": 1, "not a video": 1}
    assert told[-1][:2] == (7, 7) and re.search(
        r"clips/s, .* s of video a second, skipped 2, left 0:00:00", told[-1][2]
    )
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5, 6, 7]

    store = LatentStore.open(tmp_path / "store")
    table = store.table
    assert len(store) == 5 and table["source"].to_pylist() == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "6.mp4"]
    assert table["caption"].to_pylist() == ["clip 0", "clip 1", "clip 2", "clip 4", "clip 6"]
    assert store.labels == ["coat", "dress"]
    assert store.split("train") == range(4) and store.split("validation") == range(4, 5) and not store.split("test")
    assert table["colour"].to_pylist() == ["red"] * 5
    assert table["attribute.fps"].to_pylist() == ["24"] * 5 and table["fps"].to_pylist() == [8.0] * 5
    first = {name: values[0] for name, values in table.to_pydict().items()}
    assert (first["frames"], first["height"], first["width"], first["latent"]) == (5, 32, 48, [3, 5, 4, 6])
    assert (first["start"], first["end"], first["source_frames"], first["source_fps"]) == (0.0, 0.5, 5, 8.0)
    assert (first["source_height"], first["source_width"], first["reader"]) == (32, 48, "pyav")
    assert {group.latent for group in store.groups} == {(3, 5, 4, 6)}
    assert store.clip == {"frames": 5, "size": [32, 48], "fps": 8.0}
    assert (first["flip"], first["stride"], first["speed"]) == (False, None, 1.0)
    groups = [(group.split, group.frames, group.height, group.width, group.latent) for group in store.groups]
    assert groups == [(split, 5, 32, 48, (3, 5, 4, 6)) for split in ("train", "validation")]
    assert store.meta["codec"] == {"name": "pooled", "fingerprint": "pooled"}

    drawn = []
    for row in range(len(store)):
        number = int(table["source"][row].as_py()[0])
        mean, std = store.latent(row)
        wanted = Pooled().encode(frames_to_clip(clip(number))[None]).mean[0]
        assert mean.shape == (3, 5, 4, 6) and (mean - wanted).abs().mean() < 0.03, number
        assert torch.equal(std, mean.abs() / 2)
        drawn.append((mean.double(), std.double()))
    means, stds = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    assert torch.allclose(store.channel_mean.double(), means.mean(dim=(0, 2, 3, 4)), atol=1e-6)
    variance = (means**2 + stds**2).mean(dim=(0, 2, 3, 4)) - means.mean(dim=(0, 2, 3, 4)) ** 2
    assert torch.allclose(store.channel_std.double(), variance.sqrt(), atol=1e-6)
    assert all(10 < psnr < 60 for psnr in table["psnr"].to_pylist())

    quarantine = pyarrow.parquet.read_table(tmp_path / "store" / "quarantine.parquet").to_pylist()
    assert [row["source"] for row in quarantine] == ["3.mp4", "5.mp4"]
    assert quarantine[0]["reason"] == "too short: 0.25 s of video, more than 0.5 s needed"


def test_a_second_call_does_nothing(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.name != ".lock"}
    codec = Pooled()
    report = run(videos, tmp_path / "store", codec)
    assert (codec.clips, report.encoded, report.kept, report.skipped) == (0, 0, 5, 2)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_with_processes_the_store_does_not_depend_on_their_number_or_on_places(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "a")
    moved = videos.rename(tmp_path / "elsewhere")
    run(moved, tmp_path / "deep" / "b", workers=2)
    here, there = contents(tmp_path / "a"), contents(tmp_path / "deep" / "b")
    assert json.loads(there.pop("store.json")).pop("made")["source"] == str(moved)
    del here["store.json"]
    assert here == there


def test_added_changed_and_removed_videos(videos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(videos, store)
    (videos / "captions.csv").unlink()
    shutil.copy(videos / "0.mp4", videos / "moved.mp4")
    (videos / "0.mp4").unlink()
    write_clip(videos / "1.mp4", clip(11), 8)
    write_clip(videos / "9.mp4", clip(9), 8)
    codec = Pooled()
    report = run(videos, store, codec)
    assert codec.clips == 2 and report.encoded == 2 and report.kept == 6 and report.unused == 1
    assert report.without_caption == 6
    opened = LatentStore.open(store)
    assert opened.table["source"].to_pylist() == ["1.mp4", "2.mp4", "4.mp4", "6.mp4", "9.mp4", "moved.mp4"]
    assert opened.labels == [] and set(opened.table["caption"].to_pylist()) == {None}
    for row in range(6):
        assert opened.latent(row)[0].isfinite().all()


def test_the_same_content_twice_is_encoded_once_and_said(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "0.mp4", videos / "again.mp4")
    (videos / "captions.csv").unlink()
    codec = Pooled()
    told: list[int] = []
    report = run(videos, tmp_path / "store", codec, progress=lambda done, total, words: told.append(total - done))
    assert told == [6, 5, 4, 3, 2, 1, 0]
    assert report.same_content == 1 and report.kept == 6 and codec.clips == 5
    store = LatentStore.open(tmp_path / "store")
    rows = [store.table["source"].to_pylist().index(name) for name in ("0.mp4", "again.mp4")]
    assert torch.equal(store.latent(rows[0])[0], store.latent(rows[1])[0])


def test_two_spans_of_a_video(videos: Path, tmp_path: Path) -> None:
    (videos / "captions.csv").write_text("path,start,end\n0.mp4,,\n0.mp4,0.25,\n0.mp4,0.125,0.25\n")
    report = run(videos, tmp_path / "store", frames=3)
    store = LatentStore.open(tmp_path / "store")
    assert report.kept == 2 and store.table["start"].to_pylist() == [0.0, 0.25]
    assert torch.equal(store.latent(0)[0][:, 2], store.latent(1)[0][:, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bfloat16"}, ["another dtype", "bfloat16", "float32"]),
        ({"codec": Pooled("other")}, ["another codec", "other", "pooled"]),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_other_settings_are_refused(
    videos: Path, tmp_path: Path, change: dict[str, Any], words: list[str], whole: bool
) -> None:
    run(videos, tmp_path / "store")
    if not whole:
        (tmp_path / "store" / "store.json").unlink()
    before = contents(tmp_path / "store")
    with pytest.raises(Refused) as error:
        run(videos, tmp_path / "store", **change)
    assert all(word in str(error.value) for word in words), error.value
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 0}, "impossible clip"),
        ({"fps": 0.0}, "rate of frames is out of range"),
        ({"size": (30, 48)}, "the nearest is"),
        ({"dtype": "int8"}, "unknown type"),
        ({"batch_size": 0}, "empty batch"),
    ],
)
def test_impossible_requests_are_refused(videos: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        run(videos, tmp_path / "store", **change)
    assert not (tmp_path / "store").exists()


def test_refused_places(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        run(tmp_path / "none", tmp_path / "store")
    with pytest.raises(Refused, match=r"other things in it.*0\.mp4"):
        run(videos, videos)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="no store can be made there"):
        run(videos, tmp_path / "file" / "store")
    with pytest.raises(Refused, match="no whole latent store"):
        LatentStore.open(videos)


def test_the_budget(videos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(OverBudget, match=r"got 2 of 7.*at most 1") as error:
        run(videos, store, max_skipped=1)
    assert error.value.exit_code == 3 and isinstance(error.value, TooManySkipped)
    assert error.value.report.kept == 5 and len(LatentStore.open(store)) == 5
    with pytest.raises(OverBudget, match="at most 1"):
        run(videos, store, max_skipped=0.2)
    assert run(videos, store, max_skipped=0.3).skipped == 2


def test_nothing_usable_is_refused(videos: Path, tmp_path: Path) -> None:
    for number in (0, 1, 2, 4, 6):
        (videos / f"{number}.mp4").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(Refused, match=r"no usable clip.*7 skipped.*\(5\) empty file"):
            run(videos, tmp_path / "store")
        assert not (tmp_path / "store" / "store.json").exists()


def test_a_latent_that_is_not_finite_is_skipped(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Pooled.encode

    def encode_badly(self: Pooled, clips: torch.Tensor) -> Posterior:
        posterior = plain(self, clips)
        posterior.mean[0, 0, 0, 0, 0] = 1e5
        return posterior

    monkeypatch.setattr(Pooled, "encode", encode_badly)
    assert run(videos, tmp_path / "float32").skipped == 2
    report = run(videos, tmp_path / "float16", dtype="float16", max_skipped=9)
    assert report.reasons["latent not finite"] >= 2 and report.kept + report.skipped == 7
    store = LatentStore.open(tmp_path / "float16")
    assert all(part.isfinite().all() for row in range(len(store)) for part in store.latent(row))


def test_skipped_clips_are_read_again_on_request(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "frames_to_clip", lambda frames: frames_to_clip(frames) * float("nan"))
    with pytest.raises(Refused, match="latent not finite"):
        run(videos, tmp_path / "store")
    monkeypatch.undo()
    with pytest.raises(Refused):
        run(videos, tmp_path / "store")
    assert run(videos, tmp_path / "store", retry_skipped=True).kept == 5
    assert run(videos, tmp_path / "store").encoded == 0
    assert len(LatentStore.open(tmp_path / "store")) == 5


def test_what_could_not_be_probed_is_looked_at_again_on_request(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loaded machine took for a hanging decoder is not out for ever."""
    several: dict[str, Any] = {"buckets": (Bucket(5, 32, 48), Bucket(3, 32, 48)), "max_skipped": 9}
    plain = facts._probe

    def missing(root: Path, path: str, part: Any) -> Any:
        return plain(root, "nowhere.mp4" if path == "0.mp4" else path, part)

    monkeypatch.setattr(facts, "_probe", missing)
    first = run(videos, tmp_path / "store", **several)
    monkeypatch.undo()
    assert run(videos, tmp_path / "store", **several).kept == first.kept
    assert run(videos, tmp_path / "store", **several, retry_skipped=True).kept == first.kept + 1


def test_columns_of_a_table_never_share_a_name_in_the_store(videos: Path, tmp_path: Path) -> None:
    lines = ["path,attribute.id,id", *(f"{number}.mp4,a{number},b{number}" for number in range(7))]
    (videos / "captions.csv").write_text("\n".join(lines))
    run(videos, tmp_path / "store")
    table = LatentStore.open(tmp_path / "store").table
    assert len(set(table.column_names)) == len(table.column_names)
    assert table["attribute.id"][0].as_py() == "a0" and table["attribute.attribute.id"][0].as_py() == "b0"


def test_an_id_stands_for_all_that_its_latent_depends_on(videos: Path) -> None:
    clip = SourceClip("0.mp4", "a caption", start=0.25)
    rules = ClipRules((Bucket(5, 32, 48),), 8.0)
    settings = {"dtype": "float16", "codec": "pooled", "tiling": None}

    def id_of(clip: SourceClip = clip, rules: ClipRules = rules, settings: dict[str, Any] = settings) -> str:
        return plan_clips([clip], find_facts(videos, [clip], {}, None), rules, settings)[0].id

    (videos / "copy.mp4").write_bytes((videos / "0.mp4").read_bytes())
    first = id_of()
    assert len(first) == 32 and first == id_of(replace(clip, path="copy.mp4", caption=None, split="test"))
    part = Part("box", 3, (videos / "0.mp4").stat().st_size)
    (videos / "box").write_bytes(b"abc" + (videos / "0.mp4").read_bytes() + b"defg")
    assert first == id_of(replace(clip, path="box/0.mp4", part=part))
    others = [id_of(replace(clip, path="1.mp4")), id_of(replace(clip, start=0.5)), id_of(replace(clip, end=1.0))]
    others += [id_of(settings=settings | {name: "other"}) for name in settings]
    changes = {"buckets": (Bucket(3, 32, 48),), "fps": 4.0, "stride": 2, "reader": "decord"}
    others += [id_of(rules=replace(rules, **{name: value})) for name, value in changes.items()]
    both = plan_clips([clip], find_facts(videos, [clip], {}, None), replace(rules, flip=True), settings)
    assert [planned.id == first for planned in both] == [True, False]
    assert len({first, both[1].id, *others}) == 2 + len(others)


@pytest.mark.parametrize("change", [{"size": (32, 40)}, {"fps": 10.0}, {"frames": 3}])
def test_another_cut_is_encoded_beside_the_old_one(videos: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    run(videos, tmp_path / "store")
    codec = Pooled()
    report = run(videos, tmp_path / "store", codec, max_skipped=9, **change)
    assert report.encoded == 7 and codec.clips == report.kept and report.unused == 5
    assert LatentStore.open(tmp_path / "store").clip == {"frames": 5, "size": [32, 48], "fps": 8.0} | {
        name: list(value) if name == "size" else value for name, value in change.items()
    }
    back = run(videos, tmp_path / "store")
    assert (back.encoded, back.kept) == (0, 5)


def test_psnr_is_sampled_by_content(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "all", psnr_every=1)
    run(videos, tmp_path / "some", psnr_every=2, batch_size=3)
    run(videos, tmp_path / "none", psnr_every=0)
    every, some, none = (LatentStore.open(tmp_path / n).table.to_pydict() for n in ("all", "some", "none"))
    assert none["psnr"] == [None] * 5
    for id, whole, part in zip(every["id"], every["psnr"], some["psnr"], strict=True):
        assert part == (whole if int(id[:8], 16) % 2 == 0 else None)


def test_too_little_room_is_refused_before_work(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="too little room"):
        run(videos, tmp_path / "store")


def test_a_shard_that_was_cut_is_made_again(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "store")
    before = contents(tmp_path / "store")
    shard = tmp_path / "store" / "shards" / "00000.safetensors"
    os.truncate(shard, 100)
    with pytest.raises(Refused, match=r"damaged store.*00000\.safetensors.*100 bytes"):
        LatentStore.open(tmp_path / "store").latent(0)
    assert run(videos, tmp_path / "store").encoded == 3
    assert contents(tmp_path / "store") == before


def test_a_store_of_a_newer_format_is_refused(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "store")
    path = tmp_path / "store" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    for call in (lambda: LatentStore.open(tmp_path / "store"), lambda: run(videos, tmp_path / "store")):
        with pytest.raises(Refused, match=r"newer mmdit.*format 99.*at most 2"):
            call()


def test_a_full_disk_stops_with_what_is_done_kept(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "full@00001.safetensors:begin")
    with pytest.raises(Stopped, match=r"cannot be written.*No space"):
        run(videos, tmp_path / "store")
    monkeypatch.delenv("MMDIT_FAULT")
    with pytest.raises(Refused, match="an unfinished one"):
        LatentStore.open(tmp_path / "store")
    codec = Pooled()
    assert run(videos, tmp_path / "store", codec).kept == 5
    assert codec.clips == 2  # the first shard, with three of the five, was kept
    run(videos, tmp_path / "other")
    assert contents(tmp_path / "store") == contents(tmp_path / "other")
