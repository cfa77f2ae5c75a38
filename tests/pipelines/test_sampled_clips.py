"""Samples as a set to measure: what each is asked for, and that it is a function of its number."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmdit.conditioning import Labels
from mmdit.errors import Refused
from mmdit.evaluation.protocol import Protocol
from mmdit.evaluation.view import View
from mmdit.pipelines.loading import Source
from mmdit.pipelines.sampled_clips import How, SampledClips, sampled_rows, told_attributes

ROWS = [
    {"caption": "a red coat", "label": "coat", "garment": "coat", "colour": "red"},
    {"caption": "a blue dress", "label": "dress", "garment": "dress", "colour": "blue"},
]
HOW = How(seed=3, steps=2, guidance=1.0, batch_size=2)


def source(text: bool = True, labels: bool = True) -> Source:
    known: Any = Labels(tiny.LABELS) if labels else None
    return Source(None, known, text, tiny.CLIP, {}, None, None)  # type: ignore[arg-type]


def asked(rows: Any = ROWS, model: Source | None = None, **rules: Any) -> Any:
    return sampled_rows(model or source(), Protocol(samples=5, **rules), rows)


def test_samples_follow_the_rows_and_then_follow_them_again() -> None:
    assert asked() == [ROWS[0], ROWS[1], ROWS[0], ROWS[1], ROWS[0]]
    assert [row["label"] for row in asked(conditions="labels")] == [*tiny.LABELS, *tiny.LABELS][:5]
    assert asked(conditions="none") == [{"caption": None, "label": None}] * 5
    assert asked([{}], source(text=False, labels=False)) == [{"caption": None, "label": None}] * 5


@pytest.mark.parametrize(
    ("rows", "model", "rules", "said"),
    [
        (ROWS, source(labels=False), {"conditions": "labels"}, "no labels"),
        (ROWS, source(text=False), {"conditions": "none"}, "asks for a label"),
        ([{"caption": None, "label": "coat"}], source(), {}, "without a caption"),
        ([ROWS[0], {"caption": "a hat", "label": None}], source(text=False), {}, "without a label.* 1 of 2"),
    ],
)
def test_conditions_that_are_not_there_are_refused(rows: Any, model: Source, rules: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        asked(rows, model, **rules)


def test_labels_tell_what_they_are_and_captions_tell_all() -> None:
    names = ("garment", "colour")
    assert told_attributes(source(), ROWS, names) == ["garment", "colour"]
    assert told_attributes(source(text=False), ROWS, names) == ["garment"]
    assert told_attributes(source(), [row | {"caption": None} for row in ROWS], names) == ["garment"]


@pytest.mark.parametrize(("text", "labels"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_sample_is_a_function_of_its_number(text: bool, labels: bool) -> None:
    pipeline = tiny.make_pipeline(text=text, labels=labels)
    clips = SampledClips(pipeline, asked(model=source(text, labels)), HOW)
    together = clips.read([0, 1, 2])
    assert together.shape == (3, 3, 3, 16, 32) and together.dtype == torch.uint8
    assert clips.size == (3, 16, 32)
    assert (clips.read([2])[0].int() - together[2].int()).abs().max() <= 1
    assert not torch.equal(together[0], together[2])  # one condition, another number


def test_pictures_are_given_to_each_clip_where_nothing_is_asked_for() -> None:
    pipeline = tiny.make_pipeline(text=False, labels=False, given_frames=("first",))
    clips = SampledClips(pipeline, asked(model=source(False, False)), HOW)
    pictures = [torch.full((3, 16, 32), level) for level in (-1.0, 1.0)]
    both = clips.read([0, 1], image=pictures, force_given=False)
    assert torch.equal(both[1], clips.read([1], image=pictures[1:])[0])
    assert not torch.equal(both[0, :, 0], both[1, :, 0])


def test_captions_and_labels_reach_the_model() -> None:
    for told, text in (("caption", True), ("label", False)):
        pipeline = tiny.make_pipeline(text=text)
        pictures = [SampledClips(pipeline, [row], HOW).read([0]) for row in ROWS]
        assert not torch.equal(*pictures), told
    pipeline = tiny.make_pipeline()  # reads both, and is told by label where there is no caption
    rows = [{"caption": None, "label": name} for name in ("coat", "dress")]
    assert not torch.equal(*[SampledClips(pipeline, [row], HOW).read([0]) for row in rows])


def test_a_view_of_one_frame_is_of_images() -> None:
    pipeline = tiny.make_pipeline()
    images = SampledClips(pipeline, ROWS, HOW, View(1, size=(8, 8)))
    assert images.read([0, 1]).shape == (2, 3, 1, 8, 8)
    assert images.frames == 1
    with pytest.raises(Refused, match="clips too short"):
        SampledClips(pipeline, ROWS, HOW, View(16))


def test_the_fingerprint_is_of_all_that_the_clips_are_a_function_of() -> None:
    def fingerprint(rows: Any = ROWS, view: View | None = None, change: Any = None, **how: Any) -> str:
        pipeline = tiny.make_pipeline()
        if change is not None:
            change(pipeline)
        return SampledClips(pipeline, rows, replace(HOW, **how), view).fingerprint

    def weight(pipeline: Any) -> None:
        next(pipeline.transformer.parameters()).data.view(-1)[0] += 1e-3

    others = [{"seed": 4}, {"steps": 3}, {"guidance": 2.0}, {"precision": "bfloat16"}, {"batch_size": 1},
              {"rows": ROWS[::-1]}, {"view": View(1)}, {"change": weight},
              {"change": lambda pipeline: pipeline.use_sampler("heun")}]  # fmt: skip
    found = [fingerprint(), *(fingerprint(**other) for other in others)]
    assert fingerprint() == found[0] and len(set(found)) == len(found)


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    """An evaluation that is run again finds by it what was measured. Sets are in an order of each process's own."""
    code = "from test_sampled_clips import *; print(SampledClips(tiny.make_pipeline(), ROWS, HOW).fingerprint)"
    path = os.pathsep.join([str(Path(tiny.__file__).parent), str(Path(__file__).parent)])
    found = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
                       check=True, timeout=120, capture_output=True, text=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] != ""
