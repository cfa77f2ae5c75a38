"""Randomness as a pure function of where it is used.

Every random number in mmdit comes from `generator(seed, *place)`, where the place names the use, and the step and the
sample that it is for: `generator(seed, "noise", step, slot)`. Nothing depends on what was drawn before: order, noise,
timesteps and dropout are the same after a resume, on any number of processes, and in any batch.
"""

import hashlib
from collections.abc import Iterable

import torch

Place = int | str


def seed_at(seed: int, *place: Place) -> int:
    """The 63-bit seed that belongs to one place. Differing places give unrelated seeds."""
    text = repr((int(seed), *[part if isinstance(part, str) else int(part) for part in place]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *place: Place) -> torch.Generator:
    """A CPU generator that stands at the beginning of the random stream of one place."""
    return torch.Generator().manual_seed(seed_at(seed, *place))


def normal(shape: tuple[int, ...], seed: int, *place: Place) -> torch.Tensor:
    """Standard normal float32 numbers of the given shape, a function of seed and place alone."""
    return torch.randn(shape, generator=generator(seed, *place))


def uniform(shape: tuple[int, ...], seed: int, *place: Place) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1) of the given shape, a function of seed and place alone."""
    return torch.rand(shape, generator=generator(seed, *place))


def generators(samples: Iterable[int], seed: int, *place: Place) -> list[torch.Generator]:
    """One generator for each sample, a function of seed, place and the sample's number: not of who else is there."""
    return [generator(seed, *place, sample) for sample in samples]
