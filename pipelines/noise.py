"""Where the noise of each clip of a call comes from: a seed and an index, or a generator.

Shapes: B clips in a batch, C latent channels, (F, H, W) latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused
from mmdit.pipelines.request import place_clips

Generators = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True)
class Draws:
    """What each clip of a call draws its noise from: its (seed, index), or its generator where the user gave some."""

    places: list[tuple[int, int]]
    generators: list[torch.Generator] | None = None

    def noise(self, clips: slice, window: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal (B, C, F, H, W) for these clips of the call, other for each window of them."""
        if self.generators is not None:
            drawn = [torch.randn(shape, generator=own, device=own.device) for own in self.generators[clips]]
        else:
            drawn = [seeds.normal(shape, seed, "sample", index) for seed, index in self._at(clips, window)]
        return torch.stack(drawn).to(device)

    def of_steps(self, clips: slice, window: int) -> list[torch.Generator]:
        """Where a sampler that draws noise in its steps draws that of these clips from, one a clip."""
        if self.generators is not None:
            return self.generators[clips]
        return [seeds.generator(seed, "step", index) for seed, index in self._at(clips, window)]

    def _at(self, clips: slice, window: int) -> list[tuple[int, int]]:
        return [
            (seeds.seed_at(seed, "window", window) if window else seed, index) for seed, index in self.places[clips]
        ]


def plan_draws(
    seed: int | Sequence[int], first_index: int | Sequence[int], generator: Generators | None, clips: int
) -> Draws:
    """What so many clips draw from; a single generator serves them one after the other.

    Raises:
        Refused: not one seed, index or generator a clip, or what is none.
    """
    places = place_clips(seed, first_index, clips)
    if generator is None:
        return Draws(places)
    own: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator] * clips
    for one in own:
        if not isinstance(one, torch.Generator):
            raise Refused("not a generator", got=type(one).__name__, expected="a torch.Generator, or a list of them",
                          fix="say a number as seed")  # fmt: skip
    if len(own) != clips:
        raise Refused("not one generator a clip", got=f"{len(own)} generators", expected=f"{clips}")
    return Draws(places, own)
