import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_page import Page

from mmdit.errors import Refused
from mmdit.report.demo import write_demo_report
from mmdit.report.page import percent

Demo = tuple[Path, dict[str, Any]]


@pytest.fixture
def demo(tmp_path: Path, make_demo_folder: Callable[..., dict[str, Any]]) -> Demo:
    folder = tmp_path / "demo"
    return folder, make_demo_folder(folder)


def change(folder: Path, **values: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


def secret(folder: Path) -> None:
    """Lets the summary name a file that exists, but outside of the demo's folder."""
    (folder.parent / "secret.png").write_bytes(b"secret")
    change(folder, stills=[{"file": "../secret.png", "prompt": "x"}])


def test_the_page_shows_everything_and_needs_nothing(demo: Demo) -> None:
    folder, summary = demo
    path = write_demo_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.counts["video"] == len(summary["gallery"]) + 2
    assert page.counts["img"] == 1
    assert page.counts["svg"] == 1
    assert page.needs_nothing()
    for row in summary["scores"]:
        assert percent(row["accuracy"]) in page.text
    for figure in summary["figures"].values():
        assert figure["meaning"] in page.text
    for item in summary["gallery"]:
        assert (item["prompt"] or item["label"]).lower() in page.text.lower()
    assert summary["machine"]["cpu"] in page.text
    assert "4 min 40 s" in page.text
    assert "quick demo" not in page.text


def test_the_same_folder_gives_the_same_page(demo: Demo) -> None:
    folder, _ = demo
    assert write_demo_report(folder).read_bytes() == write_demo_report(folder).read_bytes()


def test_attributes_and_steps_come_in_their_own_order(demo: Demo) -> None:
    folder, _ = demo
    html = write_demo_report(folder).read_text()
    assert re.findall(r'class="chip[^"]*" title="(\w+)', html)[:4] == ["garment", "colour", "pattern", "motion"]
    assert re.findall(r"<dt>(\w+)[^<]*</dt><dd class=\"track\">", html) == [
        "make", "encode", "train", "generate", "score"
    ]  # fmt: skip


def test_a_reading_that_is_not_as_asked_is_marked(demo: Demo) -> None:
    folder, summary = demo
    wrong = sum(item["wanted"].get("pattern", "unclear") != "unclear" and item["read"]["pattern"] == "unclear"
                for item in summary["gallery"])  # fmt: skip
    assert wrong > 0
    assert write_demo_report(folder).read_text().count('class="chip wrong"') == wrong


def test_only_the_first_clips_are_shown_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_demo_folder: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setattr("mmdit.report.demo.SHOWN", 2)
    make_demo_folder(tmp_path, clips=4)
    assert "The first 2 of 4, not picked." in Page(write_demo_report(tmp_path).read_text()).text


def test_prompts_cannot_bring_in_markup(demo: Demo) -> None:
    folder, summary = demo
    evil = "<script>alert('x')</script>"
    change(folder, gallery=[item | {"prompt": evil, "label": evil} for item in summary["gallery"]])
    html = write_demo_report(folder).read_text()
    assert html.count("<script>") == 1
    assert Page(html).counts["script"] == 1


def test_a_quick_demo_says_so(demo: Demo) -> None:
    folder, _ = demo
    change(folder, quick=True)
    assert "This was the quick demo." in Page(write_demo_report(folder).read_text()).text


def test_a_demo_without_extras_still_has_a_page(demo: Demo) -> None:
    folder, _ = demo
    change(folder, gallery=[], stills=[], reconstructions=[], confusion={}, scores=[], figures={})
    (folder / "run" / "metrics.jsonl").write_text("")
    assert "No step was logged." in Page(write_demo_report(folder).read_text()).text


def test_a_torn_last_line_of_the_log_is_left_out_but_damage_is_refused(demo: Demo) -> None:
    folder, _ = demo
    log = folder / "run" / "metrics.jsonl"
    whole = log.read_text()
    before = write_demo_report(folder).read_bytes()
    log.write_text(whole + '{"step": 401, "lo')
    assert write_demo_report(folder).read_bytes() == before
    log.write_text("{oops\n" + whole)
    with pytest.raises(Refused, match="row 1"):
        write_demo_report(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "no summary"),
        (lambda folder: (folder / "summary.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "cannot be read"),
        (lambda folder: change(folder, format=2), "newer"),
        (lambda folder: (folder / "generated/trained/000.mp4").unlink(), "000.mp4"),
        (lambda folder: (folder / "run/metrics.jsonl").unlink(), "metrics.jsonl"),
        (secret, "no clip"),
        (lambda folder: change(folder, stills=[{"file": "summary.json", "prompt": "x"}]), "no clip"),
        (lambda folder: change(folder, timings={}), "'total'"),
    ],
)
def test_what_is_missing_or_damaged_is_refused_in_one_line(
    demo: Demo, spoil: Callable[[Path], object], says: str
) -> None:
    folder, _ = demo
    spoil(folder)
    with pytest.raises(Refused, match=says) as refusal:
        write_demo_report(folder)
    assert "\n" not in str(refusal.value)
    assert not (folder / "report.html").exists()
