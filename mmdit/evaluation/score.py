"""Scores: shares of clips that show what was asked for, with intervals; confusion tables; PSNR."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused, Stopped
from mmdit.evaluation.probe import UNCLEAR, Probe

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Score:
    """`correct` of `count` clips; accuracy and its Wilson 95 % interval as shares."""

    correct: int
    count: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """One group of clips for `score_table`: what it is, what was read from it, and what was wanted.

    clips: "real", "reconstructed" or "generated"; combinations: "trained" or "held-out"; condition: "prompt", "label"
    or None. An attribute that is not in `wanted` is not scored (a label asks for a garment only).
    """

    clips: str
    combinations: str
    condition: str | None
    read: Mapping[str, Sequence[str]]
    wanted: Mapping[str, Sequence[str]]


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share (E. B. Wilson 1927, doi:10.1080/01621459.1927.10502953), honest near 0 and 1.

    With p = correct / count and z = 1.96: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    if not 0 <= correct <= count or count < 1:
        raise Refused("no share", got=f"{correct} of {count}", expected="0 to count, of at least 1")
    p, z2 = correct / count, Z95**2
    middle = p + z2 / (2 * count)
    half = Z95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if correct == 0 else (middle - half) / scale
    return low, 1.0 if correct == count else (middle + half) / scale


def columns(rows: Iterable[Mapping[str, str]], attributes: Sequence[str]) -> dict[str, list[str]]:
    """Turns rows that have attributes into attribute -> values, which is what the functions here take."""
    rows = list(rows)
    return {key: [row[key] for row in rows] for key in attributes}


def attribute_scores(read: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]) -> dict[str, Score]:
    """For each attribute in `wanted`, how many clips read as wanted. An unclear reading is never right.

    Raises Refused when an attribute was not read, or the numbers of clips differ.
    """
    result = {}
    for key, names in wanted.items():
        seen = _same_length(read, wanted, key)
        correct = sum(a == b and a != UNCLEAR for a, b in zip(seen, names, strict=True))
        low, high = wilson(correct, len(names))
        result[key] = Score(correct, len(names), correct / len(names), low, high)
    return result


def check_probe(
    probe: Probe, clips: Tensor, wanted: Mapping[str, Sequence[str]], *, at_least: float = 0.99
) -> dict[str, float]:
    """Reads real clips, whose attributes are known, and returns the share read right for each attribute in `wanted`.

    Raises Stopped when a share is below `at_least`: scores by such a probe would mean nothing.
    """
    scores = attribute_scores(probe.read(clips), wanted)
    for key, score in scores.items():
        if score.accuracy < at_least:
            raise Stopped(
                f"the probe cannot be trusted with {key}, so nothing is scored",
                got=f"{score.correct} of {score.count} real clips read right",
                expected=f"at least {at_least:.0%}",
                fix="train a probe on clips like these with mmdit train-probe",
            )
    return {key: score.accuracy for key, score in scores.items()}


def _same_length(read: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], key: str) -> Sequence[str]:
    if key not in read:
        raise Refused("this attribute was not read", got=key, expected=f"one of {', '.join(read)}")
    if len(read[key]) != len(wanted[key]) or not wanted[key]:
        raise Refused(
            f"readings and wanted values of {key} do not match",
            got=f"{len(read[key])} readings",
            expected=f"{max(1, len(wanted[key]))}",
        )
    return read[key]


def confusion(
    read: Mapping[str, Sequence[str]],
    wanted: Mapping[str, Sequence[str]],
    attribute: str,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Counts of what was read (columns) for what was wanted (rows): {"names": [...], "counts": [[...]]}.

    The rows and columns follow `names`, then what else occurs, sorted; "unclear" comes last, when it occurs.
    """
    seen = _same_length(read, wanted, attribute)
    order = list(names or ())
    order += sorted({*seen, *wanted[attribute]} - {*order, UNCLEAR})
    order += [UNCLEAR] if UNCLEAR in seen and UNCLEAR not in order else []
    place = {name: i for i, name in enumerate(order)}
    counts = [[0] * len(order) for _ in order]
    for got, want in zip(seen, wanted[attribute], strict=True):
        counts[place[want]][place[got]] += 1
    return {"names": order, "counts": counts}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip: (b, 3, f, h, w) twice, float in [-1, 1] -> (b,).

    10 log10(peak^2 / mean squared error), with peak 2, as pixels span [-1, 1]. Equal clips give infinity.
    """
    if a.shape != b.shape:
        raise Refused("clips to compare must have one shape", got=tuple(a.shape), expected=tuple(b.shape))
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).float()


def score_table(groups: Iterable[Scored]) -> list[dict[str, Any]]:
    """A row for each group and attribute: clips, combinations, condition, attribute, and the fields of its Score."""
    return [
        {
            "clips": group.clips,
            "combinations": group.combinations,
            "condition": group.condition,
            "attribute": key,
            **asdict(score),
        }
        for group in groups
        for key, score in attribute_scores(group.read, group.wanted).items()
    ]
