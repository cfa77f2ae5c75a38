"""How the weights of a network start."""

import torch
from torch import nn

from mmdit.models.sublayers import CrossAttention


@torch.no_grad()
def initialize(model: nn.Module, conditioning: str) -> None:
    """Sets every weight of a `DiT`.

    | what | how it starts |
    |---|---|
    | weights of linears, patches and text MLPs | Xavier uniform (a patch as the matrix that it is) |
    | label table; weights of the timestep and scalar MLPs | normal, deviation 0.02 |
    | modulations and their tables, but for plain adaLN | zero: each block starts as identity |
    | last linear of cross-attention, and of a time attention that has no gate | zero: it starts by adding nothing |
    | last linear of the network | zero: the network starts as zero |
    | weights of norms, and of the norms on queries and keys | one |
    | biases | zero |
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
    for name, weight in model.named_parameters():
        if name.endswith(("norm.weight", "_scale")):
            nn.init.ones_(weight)
        elif name.endswith(("bias", "modulation_table")):
            nn.init.zeros_(weight)
        elif name.startswith(("t_embedder.", "y_embedder.", "scalar_embedders.")):
            nn.init.normal_(weight, std=0.02)
    gated = conditioning in ("adaln-zero", "shared-adaln")
    for name, module in model.named_modules():
        if name.endswith("_modulation") and gated:
            nn.init.zeros_(module[1].weight)
        elif isinstance(module, CrossAttention) or (name.endswith("time_attn") and not gated):
            nn.init.zeros_(module.proj.weight)
    nn.init.zeros_(model.get_parameter("final_layer.linear.weight"))
