"""Clips of folders and stores: the right frames, in an order that does not depend on where they lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from encoding import encode
from pooled import Direct
from videos import STEP, levels, write, write_waves

from mmdit.clips.video import write_image
from mmdit.errors import Refused, Stopped
from mmdit.evaluation.clip_sets import StoreClips, as_bytes, as_floats
from mmdit.evaluation.folder_clips import FolderClips
from mmdit.evaluation.view import View
from mmdit.latents.store import LatentStore


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit.evaluation.clip_sets.ClipReader", Direct)
    monkeypatch.setattr("mmdit.evaluation.folder_clips.ClipReader", Direct)


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers of the frames of `levels` in a clip (3, frame, height, width)."""
    return [round((float(frame.float().mean()) - 10) / STEP) for frame in clip.transpose(0, 1)]


@pytest.mark.parametrize("fps", [8, 23.976])
def test_frames_are_counted_as_they_are(tmp_path: Path, fps: float) -> None:
    write(tmp_path / "a.mp4", levels(20), fps=fps)
    clips = FolderClips(tmp_path, View(4, 3), count=None, seed=0)
    assert numbers(clips.read([0])[0]) == [0, 3, 6, 9] and clips.size == (4, 32, 64)
    starts = set()
    for seed in range(12):
        drawn = FolderClips(tmp_path, View(4, 3), count=None, seed=seed, drawn_start=True)
        first = drawn.starts[0]
        assert numbers(drawn.read([0])[0]) == [first, first + 3, first + 6, first + 9]
        starts.add(first)
    assert len(starts) > 4 and max(starts) <= 10
    assert numbers(FolderClips(tmp_path, View(), count=None, seed=0).read([0])[0]) == list(range(20))


def test_spans_and_attributes_of_a_table(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", levels(20), fps=10)
    (tmp_path / "captions.csv").write_text("path,caption,colour,start,end\na.mp4,one,red,0.5,1.1\na.mp4,two,blue,1,2\n")
    clips = FolderClips(tmp_path, View(5), count=2, seed=0)
    by_caption = {row["caption"]: number for number, row in enumerate(clips.rows)}
    assert [clips.rows[by_caption[name]]["colour"] for name in ("one", "two")] == ["red", "blue"]
    assert numbers(clips.read([by_caption["one"]])[0]) == [5, 6, 7, 8, 9]
    assert numbers(clips.read([by_caption["two"]])[0]) == [10, 11, 12, 13, 14]


def test_the_manifest_of_generated_clips_says_their_prompts(tmp_path: Path) -> None:
    write_waves(tmp_path, 2)
    rows = [{"file": "00.mp4", "prompt": "a coat", "label": None}, {"file": "01.mp4", "prompt": None, "label": "hat"}]
    (tmp_path / "manifest.json").write_text(json.dumps(rows))
    found = {row["source"]: row for row in FolderClips(tmp_path, View(), count=None, seed=0).rows}
    assert found["00.mp4"]["caption"] == "a coat" and found["01.mp4"]["label"] == "hat"
    (tmp_path / "00-again.mp4").write_bytes((tmp_path / "00.mp4").read_bytes())  # nor a sheet of all, nor anything else
    assert len(FolderClips(tmp_path, View(), count=None, seed=0).rows) == 2
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(Refused, match="not the manifest"):
        FolderClips(tmp_path, View(), count=None, seed=0)


def test_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    for number, width in enumerate((24, 40)):
        write_image(tmp_path / f"{number}.png", np.full((24, width, 3), 100 * number, np.uint8))
    clips = FolderClips(tmp_path, View(1, size=(8, 8)), count=2, seed=0)
    assert sorted(clips.read([0, 1]).flatten(1).float().mean(1).tolist()) == [0, 100]
    with pytest.raises(Refused, match="clips of unlike sizes"):
        FolderClips(tmp_path, View(1), count=None, seed=0)
    with pytest.raises(Refused, match="no videos"):
        FolderClips(tmp_path, View(2), count=None, seed=0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_waves(tmp_path, 2)
    clips = FolderClips(tmp_path, View(), count=None, seed=0)
    (tmp_path / "01.mp4").write_bytes(b"gone")
    with pytest.raises(Stopped, match=r"cannot be read, in .*01\.mp4"):
        clips.read([0, 1])
    with pytest.raises(Refused, match=r"cannot be read, in .*01\.mp4"):
        FolderClips(tmp_path, View(), count=None, seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("store")
    write_waves(folder / "clips", 5)
    encode(folder / "clips", folder / "store", tiny.make_codec(), frames=5, size=(32, 48), psnr_every=0)
    return LatentStore.open(folder / "store")


def clips_of(store: LatentStore, view: View | None = None, **options: Any) -> StoreClips:
    return StoreClips(store, "train", view or View(), **{"count": None, "seed": 0, **options})


def test_clips_of_a_store_are_originals_or_reconstructions(store: LatentStore) -> None:
    originals, again = clips_of(store), clips_of(store, reconstructed=True)
    assert originals.ids == again.ids and originals.fingerprint != again.fingerprint
    again.codec = tiny.make_codec()
    pixels = originals.read([2, 0])
    assert pixels.shape == (2, 3, 5, 32, 48)
    expected = as_bytes(again.codec.decode(again.codec.encode(as_floats(pixels)).mean))
    assert (again.read([2, 0]).int() - expected.int()).abs().max() <= 2  # latents are stored as float32
    again.codec = tiny.make_codec(seed=1)
    with pytest.raises(Refused, match="another codec"):
        again.read([0])


def test_which_clips_are_taken_depends_on_the_seed_alone(store: LatentStore) -> None:
    all_of = clips_of(store)
    assert clips_of(store, count=3).ids == all_of.ids[:3]
    assert any(clips_of(store, seed=seed).ids != all_of.ids for seed in range(1, 5))
    assert torch.equal(clips_of(store, View(3, 2)).read([1])[0], all_of.read([1])[0][:, ::2])
    shown = {clips_of(store, View(3), seed=seed).fingerprint for seed in range(3)}
    assert len(shown) == 3


def test_originals_that_are_gone_are_refused(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.meta, "made", {"source": "/nowhere"})
    with pytest.raises(Refused, match="originals of the store are not there, .*pixels=reconstructions"):
        clips_of(store)
    assert len(clips_of(store, reconstructed=True).rows) == 5
