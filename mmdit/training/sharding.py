"""FSDP2: each process holds a part of every weight, with its average, gradient and optimizer state.

A weight is put together where a block needs it, and its gradient is summed up and cut into parts again. Everything
else (order, noise, losses, clipping) is as on one process.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmdit.errors import Refused
from mmdit.training.config import RunConfig


def is_sharded(config: RunConfig, accelerator: Accelerator) -> bool:
    """Whether the weights lie in parts; one process holds them whole whatever the recipe says."""
    return config.sharding == "full" and accelerator.num_processes > 1


def check_sharding(config: RunConfig) -> None:
    """Refused for what does not work on parts of weights."""
    for key, value, fix in (
        ("precision", config.precision == "float16", "precision=auto"),
        ("optimizer.adamw=8bit", config.optimizer.adamw == "8bit", "optimizer.adamw=fused"),
        ("lora", config.lora is not None, "lora=null"),
        ("model.network=unet", config.model.network == "unet", "model.network=dit"),
        ("optimizer.muon_lr", config.optimizer.muon_lr is not None, "optimizer.muon_lr=null"),
    ):
        if value:
            raise Refused(
                "weights in parts do not go with this", got=f"sharding=full and {key}",
                expected="all weights, by fused AdamW in bfloat16 or float32", fix=f"set {fix}, or sharding=none",
            )  # fmt: skip


def shard_network(trainee: nn.Module, blocks: nn.ModuleList, accelerator: Accelerator) -> None:
    """Cuts the trainee's weights into one part for each process: each block by itself, then what is left of each child.

    In bfloat16 the weights travel as such, while parts, gradients and their sum are float32. Inputs are never cast:
    a timestep would lose its last digits.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    inner = MixedPrecisionPolicy(cast_forward_inputs=False)
    if accelerator.mixed_precision == "bf16":
        inner = replace(inner, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    outer = replace(inner, output_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=inner)
    # Parts again after each forward: between steps, parameters are parts always.
    for module in (*trainee.children(), trainee):
        fully_shard(module, mesh=mesh, mp_policy=outer, reshard_after_forward=True)


@contextlib.contextmanager
def no_sync(accelerator: Accelerator, trainee: nn.Module, module: nn.Module) -> Iterator[None]:
    """Inside, a backward pass leaves its gradients on this process; the last part of a step exchanges their sum.

    Args:
        module: the trainee as it is called, which DDP may have wrapped.
    """
    if not isinstance(trainee, FSDPModule):
        with accelerator.no_sync(module):
            yield
        return
    trainee.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        trainee.set_requires_gradient_sync(True)


def local(value: Tensor) -> Tensor:
    """This process's part, which shares its memory; a whole tensor is itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All parts put together; every process must ask alike."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads whole weights; where the module's lie in parts, each process takes its own."""
    wanted = module.state_dict()
    module.load_state_dict({name: _as_is(value, wanted.get(name)) for name, value in weights.items()})


def _as_is(value: Tensor, wanted: Tensor | None) -> Tensor:
    if not isinstance(wanted, DTensor):
        return value
    return distribute_tensor(value.to(wanted.device), wanted.device_mesh, wanted.placements, src_data_rank=None)
