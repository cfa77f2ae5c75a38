"""Optimizers and their learning rate."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from mmdit.training.config import OptimizerConfig


def make_optimizers(module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for all weights, or Muon for the network's matrices between hidden vectors and AdamW for the rest.

    Each group remembers its full learning rate as `full_lr`; `set_learning_rate` scales from there.
    """
    trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    matrices = [weight for name, weight in trained if config.muon_lr is not None and _is_hidden_matrix(name, weight)]
    chosen = {id(weight) for weight in matrices}
    others = [weight for _, weight in trained if id(weight) not in chosen]
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(others, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    ]
    if matrices:
        assert config.muon_lr is not None
        rounds = config.muon_rounds
        muon = torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, ns_steps=rounds)
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def _is_hidden_matrix(name: str, weight: torch.Tensor) -> bool:
    """Attention, MLPs and modulations of the network, and what makes the condition.

    Tables, patches, the last layer and a text encoder keep AdamW. A modulation's gradient is nearly all about the
    timestep; in Muon's step all directions count alike, so that it follows the text sooner.
    """
    within = ("blocks.", "t_embedder.", "text_embedder.", "final_layer.adaLN_modulation.")
    return weight.ndim == 2 and name.removeprefix("transformer.").startswith(within)


def learning_rate_scale(config: OptimizerConfig, step: int, steps: int) -> float:
    """The share of the full learning rate at optimizer step `step`, from 0, of `steps`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "constant":
        return 1.0
    share_left = (steps - step) / max(1, steps - config.warmup)
    return share_left if config.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * share_left)


def set_learning_rate(optimizers: list[Optimizer], scale: float) -> None:
    """Sets every group's learning rate to its full one times `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
