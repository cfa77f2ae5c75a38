"""Every part of a step is found, and the parts are the step."""

from pathlib import Path
from typing import Any

import pytest

from mmdit.training.cost import MODEL, measure_loading, measure_loop


def test_the_parts_add_up(recipe: Any, tmp_path: Path) -> None:
    cost = measure_loop(recipe(), tmp_path, 1)  # of one step, medians are the values themselves
    assert sum(cost.parts.values()) == pytest.approx(cost.step, rel=1e-6)
    assert all(seconds > 0 for seconds in cost.parts.values())
    assert 0 < cost.own_share < 1
    others = sum(seconds for name, seconds in cost.parts.items() if name not in MODEL)
    assert cost.own_share == pytest.approx(others / cost.step, rel=0.2)
    assert len(measure_loading(recipe(), 4)) == 4
