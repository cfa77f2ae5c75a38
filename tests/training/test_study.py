"""Studies: every point costs what it shall, and rows and correlations are those of the runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mmdit.errors import Refused
from mmdit.training.study import Outcome, Study, Trial, plan_study, rank_correlation, read_outcome, summarise


@pytest.fixture
def planned(recipe: Any, tmp_path: Path) -> Any:
    (tmp_path / "base.yaml").write_text(recipe().model_dump_json())  # JSON is YAML

    def plan(compute: str, points: dict[str, list[str]], *overrides: str) -> list[Trial]:
        study = Study.model_validate(
            {"recipe": str(tmp_path / "base.yaml"), "points": points, "seeds": [0, 7], "compute": compute}
        )
        return plan_study(study, overrides)

    return plan


POINTS = {"one": ["model.depth=1"], "four": ["model.depth=4"]}


def test_points_take_equal_steps_or_cost_as_much_in_all(planned: Any) -> None:
    one, same, four, _ = planned("equal-steps", POINTS, "steps=50")
    assert [trial.steps for trial in (one, same, four)] == [50, 50, 50]
    assert (one.name, same.name) == ("one-seed0", "one-seed7")
    assert four.macs > 3 * one.macs
    one, _, four, _ = planned("equal-macs", POINTS, "steps=5000")
    assert one.steps == 5000 and four.steps < 5000 / 3
    assert four.training_macs == pytest.approx(one.training_macs, rel=1e-3)
    assert {"seed=0", "model.depth=4", f"steps={four.steps}"} <= set(four.overrides)


def test_steps_on_single_frames_count_as_what_they_cost(planned: Any) -> None:
    points = {"clips": ["data.image_share=0"], "half": ["data.image_share=0.5"]}
    clips, _, half, _ = planned("equal-macs", points, "steps=5000")
    assert clips.macs / 2 < half.macs < clips.macs * 0.9
    assert half.training_macs == pytest.approx(clips.training_macs, rel=1e-3) and half.steps > 5500


def test_what_cannot_be_studied_is_refused(planned: Any) -> None:
    with pytest.raises(Refused, match=r"folder's name.*'../up'"):
        planned("equal-steps", {"../up": [], "b": []})
    with pytest.raises(Refused, match="unknown config key"):
        planned("equal-steps", {"a": ["model.deph=1"], "b": []})


def outcome(point: str, seed: int, loss: float) -> Outcome:
    return Outcome(Trial(point, seed, (), 10, 4, 100), {"held-out loss": loss}, 60.0)


def test_a_row_has_mean_and_spread_over_seeds() -> None:
    rows = summarise([outcome("a", 0, 1.0), outcome("b", 0, 5.0), outcome("a", 1, 2.0), outcome("a", 2, 3.0)])
    assert [(row.point, row.trials) for row in rows] == [("a", 3), ("b", 1)]
    assert rows[0].mean == {"held-out loss": 2.0} and rows[0].spread == {"held-out loss": 1.0}
    assert rows[1].spread == {"held-out loss": 0.0} and rows[0].training_macs == 3 * 100 * 4 * 10


def test_an_outcome_is_read_off_the_run_and_its_evaluation(tmp_path: Path) -> None:
    lines = [{"step": 1, "val_loss": 0.9, "seconds": 1.0}, {"step": 2, "val_loss": 0.5, "seconds": 2.0},
             {"step": 3, "val_loss": None, "seconds": 3.0}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shares = {"colour": {"generated": {"share": 0.5}}, "garment": {"generated": {"share": 1.0}}}
    evaluation = {"figures": {"attributes": shares, "distances": {"probe": {"frechet": 3.5}}}}
    found = read_outcome(Trial("a", 0, (), 3, 4, 100), tmp_path, evaluation)
    assert found.figures == {"held-out loss": 0.5, "attributes": 0.75, "Fréchet distance, probe": 3.5}
    assert found.seconds == 3.0
    lines += [{"step": 4, "seconds": 0.5}, {"step": 5, "seconds": 1.5}, {"step": 6, "seconds": 0.25}]  # taken up twice
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_outcome(Trial("a", 0, (), 3, 4, 100), tmp_path, evaluation).seconds == 3.0 + 1.5 + 0.25
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1}\n')
    with pytest.raises(Refused, match="no held-out loss"):
        read_outcome(Trial("a", 0, (), 3, 4, 100), tmp_path, evaluation)


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 10000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)  # equal values share a rank
    assert math.isnan(rank_correlation([1, 2], [3, 3]))
