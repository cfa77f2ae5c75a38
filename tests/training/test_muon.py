"""Muon on a CPU takes torch's steps, closer to the exact iteration; either goes on from the other's state."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdit import seeds
from mmdit.training.muon import Muon, orthogonal

SHAPES = ((48, 16), (16, 16), (16, 40), (24, 24), (64, 24))
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al. 2024


def uneven(shape: tuple[int, int], name: str) -> Tensor:
    """A matrix whose singular values span four orders, as those of momenta do."""
    left, values, right = torch.linalg.svd(seeds.normal(shape, 0, name).double(), full_matrices=False)
    return (left * torch.logspace(1, -3, len(values), dtype=torch.float64)) @ right


def exact(matrix: Tensor, rounds: int) -> Tensor:
    """Of the singular values themselves, in float64: s <- a s + b s^3 + c s^5, begun at s / |matrix|."""
    a, b, c = QUINTIC
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(rounds):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


@pytest.mark.parametrize("rounds", [1, 3, 5, 7])
def test_the_orthogonal_factors_are_those_of_the_iteration(rounds: int) -> None:
    for side in (16, 24):
        shapes = [shape for shape in SHAPES if min(shape) == side]
        matrices = [uneven(shape, f"matrix {shape}").float() for shape in shapes]
        for matrix, found in zip(matrices, orthogonal(matrices, rounds), strict=True):
            assert found.shape == matrix.shape and found.dtype == torch.float32
            assert (found - exact(matrix, rounds)).abs().max() < 1e-3  # torch's, in bfloat16: 1e-1


def test_rounds_without_end_stay_finite_where_a_matrix_lacks_rank() -> None:
    low = seeds.normal((96, 4), 0, "left") @ seeds.normal((4, 48), 0, "right")
    values = torch.linalg.svdvals(orthogonal([low], 20)[0])
    assert values[:4].min() > 0.5 and values.max() < 1.4


def test_a_matrix_of_zeros_gives_zeros_and_spoils_no_other() -> None:
    other = uneven((16, 8), "other").float()
    zeros, found = orthogonal([torch.zeros(8, 8), other])
    assert torch.equal(zeros, torch.zeros(8, 8)) and torch.allclose(found, orthogonal([other])[0], atol=1e-6)


def trained(kind: Any, steps: range, state: dict[str, Any] | None = None, start: list[Tensor] | None = None) -> Any:
    weights = [nn.Parameter(seeds.normal(shape, 0, f"weight {shape}")) for shape in SHAPES]
    for weight, value in zip(weights, start or (), strict=False):
        weight.data.copy_(value)
    optimizer = kind([*weights, unused := nn.Parameter(torch.ones(4, 4))], lr=0.05, weight_decay=0.1, ns_steps=4)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        for shape, weight in zip(SHAPES, weights, strict=True):
            weight.grad = uneven(shape, f"gradient {shape} {step}").float()
        optimizer.step()
    assert torch.equal(unused, torch.ones(4, 4))  # it has no gradient
    return [weight.detach() for weight in weights], optimizer.state_dict()


def assert_near(ours: list[Tensor], theirs: list[Tensor], steps: int) -> None:
    for mine, other in zip(ours, theirs, strict=True):  # torch's is in bfloat16
        step = 0.05 * max(1, (mine.shape[0] / mine.shape[1]) ** 0.5)
        assert (mine - other).abs().max() < 0.05 * step * steps


def test_the_steps_are_torchs() -> None:
    (ours, state), (theirs, known) = (trained(kind, range(3)) for kind in (Muon, torch.optim.Muon))
    assert_near(ours, theirs, 3)
    for number in known["state"]:
        torch.testing.assert_close(state["state"][number], known["state"][number])  # the momentum, exactly torch's


def test_each_goes_on_from_the_others_state() -> None:
    whole, _ = trained(torch.optim.Muon, range(4))
    for first, second in ((Muon, torch.optim.Muon), (torch.optim.Muon, Muon)):
        weights, state = trained(first, range(2))
        assert_near(trained(second, range(2, 4), state, weights)[0], whole, 4)
