"""Conditions are left out, and led away from, only where the network was trained without them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import exit_code

from mmdit.errors import Refused
from mmdit.pipelines.loading import find_source, load_pipeline
from mmdit.pipelines.null_conditions import NullConditions

ASK: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
BOTH = {"prompt": "a red coat", "label": "coat"}


@pytest.mark.parametrize(
    ("dropped", "ask", "said"),
    [
        ([], BOTH, "no label, and this model"),
        (["text"], BOTH, "no label, and this model"),
        (["label"], BOTH, "no prompt, and this model"),
        (["label"], {"label": "coat", "guidance_scale": 1}, "without a prompt"),
        (["text"], {"prompt": "red", "guidance_scale": 1}, "without a label"),
        (["label", "text"], BOTH, None),
        (["label"], {**BOTH, "negative_prompt": "blue"}, None),
        (["text"], {**BOTH, "guidance_scale": 1}, None),
        (None, {"prompt": "red"}, None),
    ],
)
def test_guidance_needs_what_it_leads_away_from(
    monkeypatch: pytest.MonkeyPatch, dropped: Sequence[str] | None, ask: dict[str, Any], said: str | None
) -> None:
    pipeline = tiny.make_pipeline(null_conditions=dropped)
    ask = {**ASK, "guidance_scale": 2.0, **ask}
    if said is None:
        assert pipeline(**ask).frames.isfinite().all()
        return

    tiny.forbid_work(pipeline, monkeypatch)
    with pytest.raises(Refused, match=said):
        pipeline(**ask)


def test_without_a_null_condition_the_default_is_no_guidance() -> None:
    for dropped, scale in ((None, 2.0), (["label", "text"], 2.0), (["text"], 1.0)):
        pipeline = tiny.make_pipeline(null_conditions=dropped)
        assert torch.equal(pipeline(**ASK, **BOTH).frames, pipeline(**ASK, **BOTH, guidance_scale=scale).frames)
    text_only = NullConditions(labels=False, text=True, dropped=())
    assert (text_only.default_guidance(), text_only.default_guidance(["blue"])) == (1.0, 2.0)
    assert NullConditions(labels=False, text=False, dropped=()).default_guidance() == 2.0


def test_a_checkpoint_and_a_saved_pipeline_say_what_can_be_left_out(tmp_path: Path) -> None:
    for dropped in (None, ["text"]):
        run = tmp_path / f"run-{dropped}"
        tiny.write_run(run, null_conditions=dropped)
        pipeline = load_pipeline(run)
        assert find_source(run).dropped == pipeline.null_conditions.dropped == dropped
        pipeline.save_pretrained(tmp_path / f"saved-{dropped}")
        again = tmp_path / f"saved-{dropped}"
        assert find_source(again).dropped == load_pipeline(again).null_conditions.dropped == dropped


def test_generate_refuses_before_a_model_is_loaded_and_says_when_it_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_run(tmp_path / "run", text_encoder="", null_conditions=[])
    rows = tmp_path / "rows.csv"
    rows.write_text("label,guidance\ncoat,\ndress,3\n")
    options = ("--steps", 1, "--frames", 1, "--device", "cpu", "--out")
    with monkeypatch.context() as patched:
        patched.setattr("mmdit.pipelines.loading.load_pipeline", lambda *a, **k: pytest.fail("a model was loaded"))
        for ask, said in (
            (("--label", "coat", "--guidance", 2.5), "guidance 2.5"),
            (("--prompts", rows), "guidance 3"),
        ):
            assert exit_code("generate", tmp_path / "run", *ask, *options, tmp_path / "refused") == 2
            assert said in capsys.readouterr().err
    out = tmp_path / "out.png"
    assert exit_code("generate", tmp_path / "run", "--label", "coat", *options, out) == 0
    assert json.loads((tmp_path / "out.png.json").read_text())["guidance"] == 1.0
    assert "note: made without guidance" in capsys.readouterr().err
