"""What stands behind the page, without the page: forms in, files and sentences out."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from mmdit.clips.decode import read_clip
from mmdit.clips.video import clip_to_frames, read_metadata
from mmdit.errors import Refused, Stopped
from mmdit.pipelines.app import MOST_LENGTHS, Form, Playground, Stop, takes_image
from mmdit.pipelines.note_checks import NEEDED
from mmdit.pipelines.wishes import frames_hash, make_frames

FORM = Form(prompt="a red coat", frames=3, height=16, width=32, steps=2)


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground(tiny.make_pipeline(), {"step": 5})


@pytest.fixture(scope="module")
def with_image() -> Playground:
    return Playground(tiny.make_pipeline(given_frames=["first"]))


def test_a_clip_its_still_and_how_it_was_made(playground: Playground, tmp_path: Path) -> None:
    made = playground.make(replace(FORM, label="coat", seed=4), tmp_path)
    assert made.file == tmp_path / "0001-a-red-coat.mp4" and not made.is_picture and made.notes == ()
    assert read_clip(made.file, frames=3, size=(16, 32), fps=8).frames.shape == (3, 16, 32, 3)
    with Image.open(made.still) as still:
        assert still.size == (32, 16)
    note = read_metadata(made.file)
    assert note == made.about
    assert note | {
        "prompt": "a red coat", "label": "coat", "index": 0, "frames": 3, "size": "16x32", "fps": 8, "seed": 4,
        "steps": 2, "guidance": 2.0, "precision": "float32", "step": 5, "sampler": "FlowMatchEulerDiscreteScheduler",
    } == note  # fmt: skip
    assert {path.name for path in tmp_path.rglob("*.*")} == {"0001-a-red-coat.mp4", "0001-a-red-coat.png"}


def test_one_frame_is_a_picture_and_no_name_is_used_twice(playground: Playground, tmp_path: Path) -> None:
    first = playground.make(replace(FORM, frames=1), tmp_path)
    assert first.is_picture and first.file.name == "0001-a-red-coat.png"
    with Image.open(first.file) as picture:
        assert picture.size == (32, 16) and '"frames": 1' in picture.info["comment"]
    assert playground.make(FORM, tmp_path).file.name == "0002-a-red-coat.mp4"
    assert playground.make(FORM, tmp_path).file.name == "0003-a-red-coat.mp4"


def test_the_clip_is_the_pipelines_own(playground: Playground, tmp_path: Path) -> None:
    form = replace(FORM, frames=1, seed=3, guidance=1.5)
    alone = tiny.make_pipeline()(
        "a red coat", num_frames=1, num_inference_steps=2, seed=3, guidance_scale=1.5, output_type="pil"
    ).frames[0][0]
    with Image.open(playground.make(form, tmp_path).file) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(alone))
    with Image.open(playground.make(replace(form, seed=4), tmp_path).file) as picture:
        assert not np.array_equal(np.asarray(picture), np.asarray(alone))


def test_words_that_are_not_known_are_noted(playground: Playground, tmp_path: Path) -> None:
    made = playground.make(replace(FORM, prompt="a zebra"), tmp_path)
    assert len(made.notes) == 1 and "'zebra'" in made.notes[0]
    assert playground.make(FORM, tmp_path).notes == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"height": 17}, "the nearest is 16x32"),
        ({"width": 0}, "width"),
        ({"height": 10**6, "width": 10**6}, "at most 4 GiB"),
        ({"frames": 0}, "number of frames"),
        ({"frames": None}, "the length is empty"),
        ({"height": None}, "the height is empty"),
        ({"seed": None}, "the seed is empty"),
        ({"seed": -1}, "seed"),
        ({"steps": 0}, "number of steps"),
        ({"guidance": -0.5}, "guidance"),
        ({"label": "cot"}, "did you mean 'coat'"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"image": __file__}, "begins with no given frame"),
    ],
)
def test_what_is_refused_leaves_nothing(
    playground: Playground, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        playground.make(replace(FORM, **changes), tmp_path)
    assert os.listdir(tmp_path) == []


def test_progress_and_stopping(playground: Playground, tmp_path: Path) -> None:
    stop, told = Stop(), []

    def progress(done: int, steps: int) -> None:
        told.append((done, steps))
        if done == 2:
            stop.ask()

    with pytest.raises(Stopped, match="cancelled"):
        playground.make(replace(FORM, steps=5), tmp_path, stop=stop, progress=progress)
    assert told == [(1, 5), (2, 5)]
    with pytest.raises(Stopped):
        playground.make(FORM, tmp_path, stop=stop)  # asked for before it began
    assert os.listdir(tmp_path) == []
    playground.make(FORM, tmp_path)  # the next one is not held up


def test_one_at_a_time(playground: Playground, tmp_path: Path) -> None:
    """A scheduler walks one clip: two visitors at once are served one after the other."""
    order: list[str] = []
    inside, waiting = threading.Event(), threading.Event()

    def first(done: int, steps: int) -> None:
        order.append("first")
        inside.set()
        waiting.wait(0.5)  # time for the second to come in between, if it could

    def second(done: int, steps: int) -> None:
        order.append("second")
        waiting.set()

    def make(name: str, progress: Any) -> threading.Thread:
        thread = threading.Thread(target=playground.make, args=(FORM, tmp_path / name), kwargs={"progress": progress})
        thread.start()
        return thread

    threads = [make("a", first)]
    assert inside.wait(60)
    threads.append(make("b", second))
    for thread in threads:
        thread.join(60)
    assert order == ["first", "first", "second", "second"]


def test_lengths_are_those_that_can_be_made() -> None:
    assert Playground(tiny.make_pipeline()).lengths() == [1, 2, 3, 4, 5, 6]
    assert Playground(tiny.make_pipeline(patch_frames=3)).lengths() == [3, 6]
    pipeline = tiny.make_pipeline()
    pipeline.register_to_config(clip={**tiny.CLIP, "frames": 101})
    lengths = Playground(pipeline).lengths()
    assert len(lengths) <= MOST_LENGTHS + 2 and {1, 101, 202} <= set(lengths)


def test_steps_of_the_size(playground: Playground, tmp_path: Path) -> None:
    height, width = playground.size_step()
    assert (height, width) == (8, 16)
    playground.make(replace(FORM, height=height, width=width, frames=1), tmp_path)


def test_a_model_of_labels_alone_and_one_of_text_alone(tmp_path: Path) -> None:
    labels = Playground(tiny.make_pipeline(text=False))
    assert labels.make(replace(FORM, prompt="", label="dress"), tmp_path).about["label"] == "dress"
    with pytest.raises(Refused, match="no prompt and no label"):
        labels.make(replace(FORM, prompt=""), tmp_path)
    text = Playground(tiny.make_pipeline(labels=False))
    assert text.make(replace(FORM, prompt=""), tmp_path).about["prompt"] == ""
    with pytest.raises(Refused, match="no labels"):
        text.make(replace(FORM, label="coat"), tmp_path)


def test_a_first_frame_where_the_pipeline_takes_one(
    playground: Playground, with_image: Playground, tmp_path: Path
) -> None:
    """The clip is the pipeline's own for the picture, cut at the centre to the clip's shape."""
    assert with_image.takes_image and not playground.takes_image
    picture = Image.new("RGB", (300, 100), (0, 0, 255))
    picture.paste((200, 0, 0), (40, 0, 260, 100))  # of it, a clip twice as wide as high shows 50 to 250
    picture.save(tmp_path / "photo.png")
    made = with_image.make(replace(FORM, image=str(tmp_path / "photo.png")), tmp_path / "made").about
    assert made["given"]["image"]["file"] == "photo.png" and len(made["given"]["image"]["sha256"]) == 64
    red = Image.new("RGB", (32, 16), (200, 0, 0))
    (alone,) = with_image.pipeline("a red coat", image=red, num_inference_steps=2, output_type="pt").frames
    assert made["frames_sha256"] == frames_hash(clip_to_frames(alone))
    free = with_image.make(FORM, tmp_path / "made").about
    assert "given" not in free and free["frames_sha256"] != made["frames_sha256"]


@pytest.mark.parametrize(
    ("kinds", "takes"), [(["first"], True), (["last", "prefix"], True), (["last"], False), ([], False), (None, False)]
)
def test_only_a_model_trained_with_a_first_frame_takes_one(kinds: list[str] | None, takes: bool) -> None:
    assert takes_image(SimpleNamespace(config={"given_frames": kinds})) is takes
    assert not takes_image(SimpleNamespace(config={}))


def bad_pictures() -> dict[str, tuple[bytes | Image.Image | None, str]]:
    """What is uploaded by which name, and what is said of it."""
    return {
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"a text, whatever its name says\n" * 40, "not a video"),
        "broken.png": (b"\x89PNG\r\n\x1a\n broken", "damaged"),
        "point.png": (Image.new("RGB", (1, 1)), "got 1x1, expected at least 8 pixels a side"),
        "huge.png": (Image.new("1", (20000, 20000)), "too large"),
        "gone.png": (None, "no such file"),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_a_picture_that_cannot_be_read(with_image: Playground, tmp_path: Path, name: str) -> None:
    content, said = bad_pictures()[name]
    photo = tmp_path / name
    if isinstance(content, bytes):
        photo.write_bytes(content)
    elif content is not None:
        content.save(photo)
    with pytest.raises(Refused, match=said) as error:
        with_image.make(replace(FORM, image=str(photo)), tmp_path / "made")
    assert f"in {name}" in str(error.value) and str(tmp_path) not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_what_is_written_makes_the_same_frames_again(tmp_path: Path) -> None:
    """The note is that of `mmdit generate`, so that `mmdit regenerate` reads it."""
    pipeline = tiny.make_pipeline()
    made = Playground(pipeline).make(replace(FORM, label="coat", seed=4), tmp_path)
    (frames,) = make_frames(pipeline, [made.about])
    assert frames_hash(frames) == made.about["frames_sha256"]
    assert not [key for key in NEEDED if key not in made.about]
