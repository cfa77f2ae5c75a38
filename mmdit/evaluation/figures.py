"""Figures of two sets of clips, made of their columns (`mmdit.evaluation.columns`)."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mmdit.evaluation.columns import read_names
from mmdit.evaluation.distances import kernel_distance, precision_recall
from mmdit.evaluation.frechet import extrapolated_distance
from mmdit.evaluation.probe import Probe
from mmdit.evaluation.protocol import Protocol
from mmdit.evaluation.score import attribute_scores, columns

MOST_NEIGHBOURS = 10_000
"""Samples of either side that precision and recall are of, at most: tables of distances grow with the square."""

Columns = Mapping[str, Tensor]


def distance_figures(real: Columns, made: Columns, rules: Protocol) -> dict[str, Any]:
    """Of each network's features: Fréchet distance, its value extrapolated to endlessly many samples and the bias that
    differs, KID with its deviation, precision and recall, and the numbers of samples and of features."""
    figures = {}
    for column in (name for name in real if name.startswith("features.")):
        a, b = real[column], made[column]
        frechet = extrapolated_distance(a, b, seed=rules.seed)
        flat_a, flat_b = a.flatten(0, -2), b.flatten(0, -2)
        kid = kernel_distance(flat_a, flat_b, size=rules.kid_size, seed=rules.seed)
        few_a, few_b = flat_a[:MOST_NEIGHBOURS], flat_b[:MOST_NEIGHBOURS]
        enough = min(len(few_a), len(few_b)) > rules.neighbours
        precision, recall = precision_recall(few_a, few_b, neighbours=rules.neighbours) if enough else (None, None)
        figures[column.removeprefix("features.")] = {
            "samples": {"real": len(flat_a), "generated": len(flat_b)},
            "features": flat_a.shape[1],
            "frechet": frechet.value,
            "frechet_extrapolated": frechet.extrapolated,
            "frechet_bias": frechet.bias,
            "kid": kid.mean,
            "kid_deviation": kid.std,
            "kid_size": kid.size,
            "precision": precision,
            "recall": recall,
        }
    return figures


def attribute_figures(
    probe: Probe, names: Sequence[str], sides: Mapping[str, tuple[Tensor, Sequence[Mapping[str, Any]]]]
) -> dict[str, Any]:
    """attribute -> side -> {"correct", "count", "share", "interval"}: how many clips show what their rows say.

    sides: the column of readings and the rows of each.
    """
    figures: dict[str, Any] = {name: {} for name in names}
    for side, (column, rows) in sides.items():
        for name, score in attribute_scores(read_names(probe, column), columns(rows, names)).items():
            figures[name][side] = {
                "correct": score.correct, "count": score.count, "share": score.accuracy,
                "interval": [score.low, score.high],
            }  # fmt: skip
    return figures


def mean_figures(real: Columns, made: Columns) -> dict[str, Any]:
    """Flicker, drift and CLIP score: of each side the mean over clips with its standard error; of drift also the mean
    at each later frame."""
    figures: dict[str, Any] = {}
    for name in made:
        kind = name.partition(".")[0]
        if kind in ("flicker", "drift", "clip_score"):
            sides = {"generated": made[name]} | ({"real": real[name]} if name in real else {})
            figures[name] = {side: _mean(values, over_time=kind == "drift") for side, values in sides.items()}
    return figures


def codec_figures(column: Tensor) -> dict[str, Any]:
    """Mean PSNR in dB and SSIM (None for frames too small for it) of real clips as the codec leaves them."""
    quality, alike = column.double().T.tolist()
    known = not any(math.isnan(value) for value in alike)
    return {"clips": len(column), "psnr": fmean(quality), "ssim": fmean(alike) if known else None}


def _mean(values: Tensor, *, over_time: bool) -> dict[str, Any]:
    each = values.double().flatten(1).mean(1) if values.ndim > 1 else values.double()
    error = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None
    figure: dict[str, Any] = {"mean": float(each.mean()), "error": error, "count": len(each)}
    if over_time:
        figure["by_frame"] = torch.as_tensor(values).double().mean(0).tolist()
    return figure
