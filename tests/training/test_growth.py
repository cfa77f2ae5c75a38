"""Growth: points are measured, predictions are made of the few-token ones, and the crossing lies between points."""

import pytest

from mmdit.models import PRESETS
from mmdit.training.growth import Case, Point, Prediction, crossing, fit, growth_cases, measure


def test_a_step_is_measured_and_its_multiplications_are_told_apart() -> None:
    factorized = measure(Case("f", "frames", "factorized", (4, 16, 16)), "DiT-S/8", "float32")
    joint = measure(Case("j", "frames", "joint", (4, 16, 16)), "DiT-S/8", "float32")
    assert (factorized.tokens, factorized.at) == (16, 4)
    width = PRESETS["DiT-S/8"]["hidden_size"]
    assert factorized.attention == 2 * width * (4 * 4**2 + 4 * 4**2)  # T S^2 + S T^2
    assert joint.attention == 2 * width * 16**2
    assert factorized.linear > joint.linear  # of time attention
    assert min(factorized.seconds, joint.seconds) > 0
    assert factorized.memory > 4 * factorized.parameters * 4  # weights, gradients, two moments


def test_all_curves_are_there_and_end_at_the_most_tokens() -> None:
    cases = list(growth_cases("DiT-S/2", 65536))
    assert {case.along for case in cases} == {"frames", "tokens", "clips", "blocks"}
    assert max(case.grid[0] * case.grid[1] * case.grid[2] // 4 for case in cases) == 65536
    assert all(case.grid[0] * case.grid[1] * case.grid[2] // 4 <= 1024 for case in growth_cases("DiT-S/2", 1024))


def point(layout: str, tokens: int, seconds: float, linear: int = 0, attention: int = 0, parameters: int = 0) -> Point:
    case = Case(layout, "frames", layout, (tokens // 256, 32, 32))
    return Point(case, tokens // 256, tokens, seconds, 10**6 * tokens, parameters, linear, attention)


def test_predictions_come_from_the_points_of_few_tokens() -> None:
    truth = Prediction(0.01, 2e-9, 3e-11, 5e-11)
    terms = [(256, 10**6, 10**9, 10**7), (512, 5 * 10**6, 2 * 10**9, 9 * 10**8), (1024, 10**6, 7 * 10**9, 10**9),
             (2048, 3 * 10**6, 10**9, 6 * 10**9), (4096, 10**7, 9 * 10**9, 10**8)]  # fmt: skip
    points = [
        point("joint", tokens, 0.0, linear, attention, parameters) for tokens, parameters, linear, attention in terms
    ]
    exact = [point("joint", p.tokens, truth.seconds(p), p.linear, p.attention, p.parameters) for p in points]
    far = point("joint", 65536, 1e6, 1, 1, 1)  # not fitted to
    found = fit([*exact, far])
    assert found.linear == pytest.approx(truth.linear) and found.attention == pytest.approx(truth.attention)
    assert found.update == pytest.approx(truth.update) and found.start == pytest.approx(truth.start)
    assert min(vars(fit([point("joint", 256, 1.0, 5), point("joint", 512, 0.5, 9)])).values()) >= 0


def test_the_crossing_lies_where_the_curves_cross() -> None:
    factorized = [point("factorized", tokens, tokens / 1000) for tokens in (256, 1024, 4096)]
    joint = [point("joint", tokens, tokens**2 / 2_048_000) for tokens in (256, 1024, 4096)]  # equal at 2048 tokens
    assert crossing([*factorized, *joint]) == pytest.approx(2048)
    slow = [point("joint", tokens, tokens) for tokens in (256, 1024, 4096)]
    assert crossing([*factorized, *slow]) == pytest.approx(1024)  # one frame has no time attention
    fast = [point("joint", tokens, tokens / 1e6) for tokens in (256, 1024, 4096)]
    assert crossing([*factorized, *fast]) is None
