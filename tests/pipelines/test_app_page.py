"""The page of `mmdit app`, called as gradio calls it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

pytest.importorskip("gradio", reason="the page is made with gradio (the extra `app`)")

from mmdit.pipelines.app import Playground
from mmdit.pipelines.app_page import THEME, Page


def visitor(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


def quiet(*words: Any, **options: Any) -> None:
    """A progress bar that nobody looks at."""


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground(tiny.make_pipeline())


@pytest.fixture
def page(playground: Playground, tmp_path: Path) -> Any:
    return Page(playground, tmp_path, "a run")


def filled(page: Any, **values: Any) -> dict[Any, Any]:
    form = {
        "prompt": "a red coat", "label": "", "image": None, "frames": 3, "height": 16, "width": 32, "seed": 0,
        "steps": 2, "guidance": 2.0,
    }  # fmt: skip
    return {page.inputs[name]: value for name, value in (form | values).items()}


def made(page: Any, name: str = "a", **values: Any) -> dict[Any, Any]:
    page.begin(visitor(name))
    return page.make(filled(page, **values), visitor(name), quiet)


def test_a_clip_is_shown_with_how_it_was_made(page: Any) -> None:
    told = []
    page.begin(visitor("a"))
    shown = page.make(filled(page, seed=7), visitor("a"), lambda done, unit: told.append(done))
    assert told == [(1, 2), (2, 2)]
    clip = shown[page.player]["value"]
    assert Path(clip).is_file() and shown[page.download]["value"] == clip
    assert shown[page.player]["visible"] and not shown[page.picture]["visible"]
    assert "<dt>seed</dt><dd>7</dd>" in shown[page.facts] and "<dt>size</dt><dd>16x32</dd>" in shown[page.facts]
    assert len(shown[page.gallery]["value"]) == 1
    assert shown[page.said] == "" and shown[page.go]["interactive"] and not shown[page.cancel]["interactive"]


def test_the_form_begins_with_the_steps_and_the_guidance_of_the_model(page: Any, tmp_path: Path) -> None:
    pipeline = tiny.make_pipeline()
    pipeline.register_to_config(sampling={"steps": 250, "guidance": 4.0})
    own = Page(Playground(pipeline), tmp_path, "published")
    for form, steps, most, guidance in ((page, 12, 100, 2.0), (own, 250, 250, 4.0)):
        number, scale = form.inputs["steps"], form.inputs["guidance"]
        assert (number.value, number.maximum, scale.value) == (steps, most, guidance)


def test_a_picture_takes_the_place_of_the_player(page: Any) -> None:
    shown = made(page, frames=1)
    assert Path(shown[page.picture]["value"]).suffix == ".png" and shown[page.picture]["visible"]
    assert shown[page.player]["value"] is None and not shown[page.player]["visible"]


def test_the_gallery_is_of_one_visit_newest_first(page: Any) -> None:
    made(page, seed=1)
    shown = made(page, seed=2)
    assert [words for _, words in shown[page.gallery]["value"]] == ["seed 2", "seed 1"]
    assert len(made(page, "b")[page.gallery]["value"]) == 1
    again = page.choose(SimpleNamespace(index=1), visitor("a"))
    assert "<dt>seed</dt><dd>1</dd>" in again[page.facts]
    assert again[page.player]["value"] == again[page.download]["value"] == str(page.visits["a"].made[1].file)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"height": 17}, "The model cannot make this size, got 17x32 (height x width)"),
        ({"frames": None}, "The length is empty"),
        ({"label": "<b>"}, "Unknown label, got &#x27;&lt;b&gt;&#x27;"),
    ],
)
def test_what_is_refused_is_a_sentence_and_the_page_goes_on(page: Any, values: dict[str, Any], said: str) -> None:
    shown = made(page, **values)
    assert said in shown[page.said] and 'role="alert"' in shown[page.said]
    assert shown[page.go]["interactive"] and page.player not in shown and page.gallery not in shown


def test_a_fault_of_a_library_is_a_sentence_too(
    page: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*values: Any, **options: Any) -> None:
        raise MemoryError("no more of it")

    monkeypatch.setattr(page.playground, "make", fail)
    shown = made(page)
    assert (
        "The clip could not be made: MemoryError: no more of it" in shown[page.said] and shown[page.go]["interactive"]
    )
    assert "Traceback" in caplog.text and "Traceback" not in shown[page.said]


def test_words_that_are_not_known_are_said(page: Any) -> None:
    said = made(page, prompt="a <i>zebra</i>")[page.said]
    assert "zebra" in said and 'role="status"' in said and "<i>" not in said


def test_cancelling_is_of_one_visit(page: Any) -> None:
    for name in "ab":
        assert page.begin(visitor(name))[page.cancel]["interactive"]
    page.stop(visitor("a"))
    shown = page.make(filled(page), visitor("a"), quiet)
    assert "Cancelled" in shown[page.said] and shown[page.go]["interactive"] and page.player not in shown
    assert page.player in page.make(filled(page), visitor("b"), quiet)
    assert page.player in made(page)  # a new clip is not cancelled


def test_a_page_that_is_closed_leaves_no_files(page: Any, tmp_path: Path) -> None:
    made(page)
    made(page, "b")
    page.leave(visitor("a"))
    assert len(list(tmp_path.glob("*/*.mp4"))) == 1 and set(page.visits) == {"b"}
    page.leave(visitor("never came"))
    assert len(made(page, "c")[page.gallery]["value"]) == 1


@pytest.mark.parametrize(("options", "hidden"), [({"text": False}, "prompt"), ({"labels": False}, "label"), ({}, "")])
def test_fields_that_the_model_has_no_use_for_are_hidden(tmp_path: Path, options: dict[str, bool], hidden: str) -> None:
    inputs = Page(Playground(tiny.make_pipeline(**options)), tmp_path, "a run").inputs
    assert {name for name, entry in inputs.items() if not entry.visible} == {"image", hidden} - {""}
    values = [value for _, value in inputs["label"].choices]
    assert values == ([""] if options.get("text", True) else []) + (tiny.LABELS if hidden != "label" else [])


def test_every_length_that_is_offered_can_be_made(page: Any) -> None:
    assert page.inputs["frames"].choices[0] == ("1 frame, a picture", 1)
    assert page.inputs["frames"].choices[2] == ("3 frames, 0.4 s", 3)
    for _, frames in page.inputs["frames"].choices:
        assert page.said in made(page, frames=frames, steps=1) and page.visits["a"].made[0].about["frames"] == frames


def test_an_upload_that_is_no_picture_reaches_the_playground(page: Any) -> None:
    photo = page.inputs["image"]
    assert photo.preprocess(SimpleNamespace(path="/nowhere/a.png")) == "/nowhere/a.png"
    assert photo.preprocess(None) is None


def test_the_page_asks_nobody_else_for_anything(page: Any) -> None:
    assert not page.blocks.analytics_enabled
    assert THEME._stylesheets == [] and THEME._font_css == []
