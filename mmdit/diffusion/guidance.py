"""Guidance: away from what the network says without the condition. Source: arXiv 2207.12598."""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


def guided(predict_both: Predict, predict: Predict, scale: float) -> Predict:
    """A predict(x_t, t) with guidance: null + scale (conditional - null).

    Args:
        predict_both: takes x_t and t doubled along the batch, the first half conditional, the second half null.
        predict: takes x_t and t as they are, conditional; used alone at scale 1, which then costs no second pass.
    """
    if scale == 1.0:
        return predict

    def predict_guided(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, null = predict_both(torch.cat([x_t, x_t]), torch.cat([t, t])).chunk(2)
        return null + scale * (conditional - null)

    return predict_guided
