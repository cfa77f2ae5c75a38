"""Positions come from coordinates: of any grid, plain or scaled to the trained one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmdit.models import DiT
from mmdit.models import positions as module
from mmdit.models.positions import PositionMaker, rotary_table, rotate, sincos_1d, sincos_2d

Make = Callable[..., DiT]
CPU = torch.device("cpu")


def test_the_sincos_table_is_the_papers() -> None:
    table = sincos_2d(torch.arange(2.0), torch.arange(3.0), 8)
    assert table.shape == (6, 8)
    row, column = 1, 2
    angles = torch.tensor([1.0, 10_000**-0.5])
    expected = torch.cat([(p * angles).sin() if f == 0 else (p * angles).cos() for p in (column, row) for f in (0, 1)])
    torch.testing.assert_close(table[row * 3 + column], expected)


def test_rotary_scores_depend_on_distance_alone_along_each_axis() -> None:
    q, k = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    grid = (3, 4, 5)
    table = rotary_table(tuple(torch.arange(n, dtype=torch.float64) for n in grid), 32)
    q, k = (rotate(x.expand(60, 1, 32), table)[:, 0] for x in (q, k))
    scores = (q @ k.T).view(*grid, *grid)
    for axis in range(3):
        near, far = [0, 0, 0], [0, 0, 0]
        near[axis], far[axis] = 1, 2
        here = scores[(0, 0, 0, *near)]
        torch.testing.assert_close(scores[(*near, *far)], here, atol=1e-4, rtol=1e-4)
        assert (here - scores[(0, 0, 0, *far)]).abs() > 1e-3


@pytest.mark.parametrize("kind", ["sincos", "rotary"])
def test_scaled_positions_span_what_the_trained_grid_spans(kind: str) -> None:
    plain = PositionMaker(kind, 16, 16, False, None)
    scaled = PositionMaker(kind, 16, 16, False, (4.0, 4.0, 4.0))
    assert all(a is b or torch.equal(a, b) for a, b in zip(plain((4, 4, 4), CPU), scaled((4, 4, 4), CPU), strict=True))
    for trained, twice in zip(plain((4, 4, 4), CPU), scaled((8, 8, 8), CPU), strict=True):
        if trained is None or twice is None or len(trained) == 64:  # the joint table has another order
            continue
        axis = 1 if kind == "sincos" and trained.shape[0] == 1 else 0
        coarse = trained.unflatten(axis, (4, 4)) if trained.shape[axis] == 16 else trained
        fine = twice.unflatten(axis, (8, 8)) if twice.shape[axis] == 64 else twice
        every_second = [slice(None)] * axis + [slice(None, None, 2)] * (2 if trained.shape[axis] == 16 else 1)
        torch.testing.assert_close(fine[tuple(every_second)], coarse)


@torch.no_grad()
def test_the_network_scales_them_when_asked_to(small: Make, inputs: Callable[..., dict[str, Any]]) -> None:
    for kind in ("sincos", "rotary"):
        plain, scaled = (small(layout="joint", positions=kind, interpolate=on) for on in (False, True))
        at_home, elsewhere = inputs(plain), inputs(plain, grid=(5, 6, 10))
        assert torch.equal(plain(**at_home), scaled(**at_home))
        assert (plain(**elsewhere) - scaled(**elsewhere)).abs().max() > 1e-3


def test_tables_of_a_few_grids_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRIDS_KEPT", 3)
    maker = PositionMaker("sincos", 16, 8, False, None)
    first = maker((1, 2, 2), CPU)
    assert maker((1, 2, 2), CPU) is first
    for n in range(1, 10):
        torch.testing.assert_close(
            maker((n, 2, 2), CPU).added_over_time, sincos_1d(torch.arange(n), 16).float()[:, None]
        )
        assert len(maker._kept) <= 3


def test_tables_made_while_sampling_serve_training(small: Make, inputs: Callable[..., dict[str, Any]]) -> None:
    model = small(layout="factorized", positions="rotary")
    values = inputs(model)
    with torch.inference_mode():
        model(**values)
    model(**values).sum().backward()
