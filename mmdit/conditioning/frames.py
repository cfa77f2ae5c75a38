"""Given frames: which latent frames of a clip the network is shown as they are, to make the others from them.

A given frame enters without noise and with the timestep of clean data, the others with noise and theirs: one network
does text-to-video (none given), image-to-video (the first), extension (the first few), interpolation (first and last,
or every n-th) and looping. Source: frame-wise noise levels as in arXiv 2407.01392 (diffusion forcing).

Shapes: F latent frames. A mask (F,) is True at given frames. Frames that share a patch are given together.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused


def _pick(groups: int, random: torch.Generator) -> int:
    """A number from 1 to `groups` - 1."""
    return int(torch.randint(1, groups, (), generator=random))


def _first(groups: int, random: torch.Generator) -> list[int]:
    return [0]


def _last(groups: int, random: torch.Generator) -> list[int]:
    return [groups - 1]


def _both(groups: int, random: torch.Generator) -> list[int]:
    return [0, groups - 1]


def _prefix(groups: int, random: torch.Generator) -> list[int]:
    return list(range(_pick(groups, random)))


def _every_nth(groups: int, random: torch.Generator) -> list[int]:
    return list(range(0, groups, 1 + _pick(groups, random)))


# name -> the groups of frames that are given, of 2 or more groups; all but "first" and "last" leave something to make
# of 3 groups on.
GIVEN: dict[str, Callable[[int, torch.Generator], list[int]]] = {
    "first": _first,
    "last": _last,
    "both": _both,
    "prefix": _prefix,
    "every-nth": _every_nth,
}


def given_mask(kind: str | None, frames: int, random: torch.Generator, *, patch: int = 1) -> Tensor:
    """A mask (F,) of given frames.

    Args:
        kind: one of `GIVEN`; None for no frame.
        frames: F, of which at least one is never given: of a clip with a single group nothing is.
        random: decides what the kind leaves open.
        patch: frames that share a patch.

    Raises:
        Refused: an unknown kind.
    """
    mask = torch.zeros(frames, dtype=torch.bool)
    if kind is None:
        return mask
    if kind not in GIVEN:
        raise Refused("unknown kind of given frames", got=kind, expected=" or ".join(GIVEN))
    groups = frames // patch
    if groups < 2:
        return mask
    given = GIVEN[kind](groups, random)
    if len(given) == groups:
        given = given[:-1]
    for group in given:
        mask[group * patch : (group + 1) * patch] = True
    return mask


def draw_kind(shares: Mapping[Any, float], uniform: float) -> str | None:
    """The kind of given frames that a uniform number in [0, 1) stands for; None for what the shares leave."""
    for kind, share in shares.items():
        if uniform < share:
            return kind
        uniform -= share
    return None


def kinds_of(mask: Tensor, *, patch: int = 1) -> list[str]:
    """The kinds that can give exactly these frames, (F,); none for a mask that training never draws."""
    parts = mask.view(-1, patch)
    groups, given = len(parts), parts.all(1).nonzero().flatten().tolist()
    if groups < 2 or not given or not torch.equal(parts.any(1), parts.all(1)) or len(given) == groups:
        return []
    every = [list(range(0, groups, step)) for step in range(2, groups + 1)]
    fits = {
        "first": given == [0],
        "last": given == [groups - 1],
        "both": given == [0, groups - 1],
        "prefix": given == list(range(len(given))),
        "every-nth": given in every,
    }
    return [kind for kind in GIVEN if fits[kind]]
