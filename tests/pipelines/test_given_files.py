"""Given frames from files, and the options of `mmdit generate` that name them."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
from commands import exit_code

from mmdit.clips.video import read_metadata, write_clip, write_image
from mmdit.errors import Refused
from mmdit.pipelines.given_files import read_given
from mmdit.pipelines.output import read_note

CLIP = {"frames": 4, "size": [16, 32], "fps": 8}


def levels(count: int) -> np.ndarray[Any, Any]:
    """Gray frames that grow brighter, (count, 16, 32, 3)."""
    return np.broadcast_to(np.linspace(20, 220, count).astype(np.uint8).reshape(-1, 1, 1, 1), (count, 16, 32, 3)).copy()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.png", levels(1)[0])
    return tmp_path / "photo.png"


@pytest.mark.parametrize("fps", [8, 24])
def test_of_a_clip_it_is_the_end_at_the_rate_of_the_training(tmp_path: Path, fps: int) -> None:
    write_clip(tmp_path / "clip.mp4", levels(30), fps, quality=0)
    given, facts = read_given(extend=tmp_path / "clip.mp4", clip=CLIP, trained=["prefix"])
    shown = given.video[:, 0, 0, 0].astype(int)
    wanted = levels(30)[29 - fps // 8 * np.arange(4)[::-1], 0, 0, 0].astype(int)
    assert np.abs(shown - wanted).max() <= 3, (shown, wanted)
    assert facts["given"]["extend"]["file"] == "clip.mp4"
    assert len(facts["given"]["extend"]["sha256"]) == 64


def test_a_short_clip_and_a_picture_are_what_they_are(tmp_path: Path, photo: Path) -> None:
    write_clip(tmp_path / "clip.mp4", levels(2), 8)
    given, _ = read_given(extend=tmp_path / "clip.mp4", clip=CLIP, trained=["prefix"])
    assert given.video.shape == (2, 16, 32, 3)
    given, _ = read_given(extend=photo, clip=CLIP, trained=["prefix"])
    assert given.video.shape == (1, 16, 32, 3)
    given, facts = read_given(photo, photo, clip=CLIP, trained=["both"], size=(8, 16))
    assert given.image.shape == given.last_image.shape == (8, 16, 3)
    assert set(facts["given"]) == {"image", "last_image"}
    assert not read_given(clip=CLIP)[0]


def test_what_cannot_be_given_is_refused(tmp_path: Path, photo: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    for asked, trained, said in (
        ({"image": photo}, [], "not trained with given frames"),
        ({"image": tmp_path / "none.jpg"}, ["first"], "no such file"),
        ({"image": bad}, ["first"], "bad.jpg"),
        ({"extend": bad}, ["first"], "bad.jpg"),
        ({"image": photo, "extend": photo}, ["first"], "--extend"),
    ):
        with pytest.raises(Refused, match=said):
            read_given(**asked, clip=CLIP, trained=trained)


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_generate_holds_the_photo_and_says_so(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_run(tmp_path / "run", given_frames=["first"])
    words = ("generate", tmp_path / "run", "--prompt", "red", "--steps", 1, "--out")
    assert exit_code(*words, tmp_path / "given.mp4", "--image", photo) == 0
    assert exit_code(*words, tmp_path / "free.mp4") == 0
    assert not np.array_equal(frames_of(tmp_path / "given.mp4"), frames_of(tmp_path / "free.mp4"))
    note: dict[str, Any] = dict(read_metadata(tmp_path / "given.mp4"))
    assert note["given"]["image"]["file"] == "photo.png"
    capsys.readouterr()
    assert exit_code(*words, tmp_path / "last.mp4", "--last-image", photo) == 2
    assert "not trained with such given frames" in capsys.readouterr().err
    assert exit_code(*words, tmp_path / "last.mp4", "--last-image", photo, "--force-given") == 0


def test_the_photo_is_cut_to_the_size_of_a_list_of_prompts(tmp_path: Path, photo: Path) -> None:
    tiny.write_run(tmp_path / "run", given_frames=["first"])
    (tmp_path / "list.csv").write_text("prompt,size\nred,32x64\n")
    words = ("generate", tmp_path / "run", "--steps", 1, "--image", photo)
    assert exit_code(*words, "--prompts", tmp_path / "list.csv", "--out", tmp_path / "a.mp4") == 0
    assert exit_code(*words, "--prompt", "red", "--size", "32x64", "--out", tmp_path / "b.mp4") == 0
    notes: list[dict[str, Any]] = [dict(read_metadata(tmp_path / f"{name}.mp4")) for name in "ab"]
    assert notes[0]["given"]["image"]["size"] == "32x64"
    assert notes[0]["frames_sha256"] == notes[1]["frames_sha256"]


def test_what_cannot_hold_it_is_refused_before_a_model_is_loaded(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", lambda *args, **more: 1 / 0)
    tiny.write_run(tmp_path / "run", given_frames=["first", "both"])
    words = ("generate", tmp_path / "run", "--prompt", "red", "--out")
    new = tmp_path / "new.png"
    sizes = tmp_path / "sizes.csv"
    sizes.write_text("prompt,size\nred,32x64\nblue,\n")
    listed = ("generate", tmp_path / "run", "--prompts", sizes, "--out", tmp_path / "many", "--image", photo)
    assert exit_code(*listed) == 2
    assert "given frames are cut to one size, got clips of 32x64 and 16x32" in capsys.readouterr().err
    for asked, said in (
        ((new, "--image", photo, "--frames", 1), "all frames are given"),
        ((new, "--last-image", photo), "not trained with such given frames"),
        ((new, "--image", photo, "--size", "160000x320000"), "too much for one call"),
        ((photo, "--image", photo), "the output is what it is made from"),
    ):
        assert exit_code(*words, *asked) == 2
        assert said in (line := capsys.readouterr().err) and line.count("\n") == 1, line


@pytest.fixture
def made(tmp_path: Path, photo: Path) -> dict[str, Path]:
    """Files that were made from photos and from a clip."""
    tiny.write_run(tmp_path / "run", given_frames=["both", "prefix"])
    random = np.random.default_rng(0)
    write_image(photo, random.integers(0, 256, (40, 50, 3), dtype=np.uint8))  # read at another size it looks otherwise
    write_image(tmp_path / "last.png", levels(3)[2])
    write_clip(tmp_path / "clip.mp4", levels(6), 8)
    words = ("generate", tmp_path / "run", "--prompt", "red", "--steps", 2, "--size", "24x16")
    asked = {
        "begun": ("--image", photo, "--last-image", tmp_path / "last.png"),
        "more": ("--extend", tmp_path / "clip.mp4"),
    }
    out = {name: tmp_path / "out" / f"{name}.png" for name in asked}
    for name, given in asked.items():
        assert exit_code(*words, "--out", out[name], *given) == 0
    return out


def test_what_was_made_from_given_frames_is_made_again(
    made: dict[str, Path], tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ("--out", tmp_path / "again.png")
    capsys.readouterr()
    for file in made.values():
        assert str(tmp_path) not in json.dumps(read_note(file))  # where they lay is said beside the file only
        assert exit_code("regenerate", file, *again) == 0
        assert capsys.readouterr().out.endswith(f"\nidentical: {tmp_path / 'again.png'}\n")
        assert read_note(tmp_path / "again.png") == read_note(file)
    moved = photo.rename(tmp_path / "moved.png")
    assert exit_code("regenerate", made["begun"], *again) == 2
    assert "what the file was made from is not there" in (said := capsys.readouterr().err) and "--image" in said
    assert exit_code("regenerate", made["begun"], *again, "--image", moved) == 0
    moved.rename(made["begun"].parent / "photo.png")  # beside the file
    assert exit_code("regenerate", made["begun"], *again) == 0


def test_another_file_than_the_given_one_is_refused(
    made: dict[str, Path], tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", lambda *args, **more: 1 / 0)
    assert exit_code("regenerate", made["more"], "--image", photo) == 2
    assert "was not made from this" in (said := capsys.readouterr().err) and "expected --extend" in said
    assert exit_code("regenerate", made["begun"], "--image", tmp_path / "last.png") == 2
    assert "not what the file was made from" in capsys.readouterr().err
    write_image(photo, levels(5)[3])
    assert exit_code("regenerate", made["begun"]) == 2
    assert "not what the file was made from, or changed since" in capsys.readouterr().err


def test_a_folder_of_given_frames_goes_on_with_the_same_ones_only(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_run(tmp_path / "run", given_frames=["first"])
    words = (
        "generate",
        tmp_path / "run",
        "--prompt",
        "red",
        "--steps",
        1,
        "--format",
        "png",
        "--out",
        tmp_path / "out",
    )
    assert exit_code(*words, "--image", photo) == 0
    assert exit_code(*words) == 2
    assert "the folder holds the clips of another call" in capsys.readouterr().err
    assert exit_code(*words, "--image", photo.rename(tmp_path / "out" / "photo.png")) == 0
    assert exit_code("regenerate", tmp_path / "out" / "0-red.png") == 0
