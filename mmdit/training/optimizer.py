"""Optimizers and their learning rate."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from mmdit.models import DiT, Network
from mmdit.training.config import OptimizerConfig
from mmdit.training.eight_bit import adamw_8bit
from mmdit.training.muon import Muon
from mmdit.training.trainee import Trainee


def make_optimizers(trainee: Trainee, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for all weights, or Muon for the network's matrices between hidden vectors and AdamW for the rest.

    Each group remembers its full learning rate as `full_lr`; `set_learning_rate` scales from there.
    """
    trained = [weight for weight in trainee.parameters() if weight.requires_grad]
    hidden = _hidden_matrices(trainee.transformer) if config.muon_lr is not None else set()
    matrices = [weight for weight in trained if weight in hidden]
    others = [weight for weight in trained if weight not in hidden]
    lr, betas, decay = config.lr, config.betas, config.weight_decay
    if config.adamw == "8bit":
        optimizers = [adamw_8bit(others, lr=lr, betas=betas, weight_decay=decay)]
    else:
        optimizers = [torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=decay, fused=True)]
    if matrices:
        assert config.muon_lr is not None
        rounds = config.muon_rounds
        muon = Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, ns_steps=rounds)
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = float(group["lr"])
    return optimizers


def _hidden_matrices(network: Network) -> set[torch.Tensor]:
    """The weights of all linear layers of the network but the last, which makes the output.

    These are attention, MLPs and modulations, and what makes the conditions. Tables, patches and a text encoder keep
    AdamW. A modulation's gradient is nearly all about the timestep; in Muon's step all directions count alike, so that
    it follows the text sooner.
    """
    last = network.final_layer.linear if isinstance(network, DiT) else None  # a U-Net ends in a convolution
    return {part.weight for part in network.modules() if isinstance(part, nn.Linear) and part is not last}


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
            lr = group["full_lr"] * scale
            if isinstance(group["lr"], torch.Tensor):  # as torchao has it
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
