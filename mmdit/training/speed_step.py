"""One training step in each of the ways that are compared: the networks, ours and diffusers', with their optimizers."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.models import DiT
from mmdit.models.cpu_kernels import plain_kernels
from mmdit.models.presets import preset_options
from mmdit.training.allocator import keep_freed_memory
from mmdit.training.ema import EMA
from mmdit.training.memory import DTYPES
from mmdit.training.speed_ways import LABELS, Case, Way, options

CAPTION = 8  # width of the caption that diffusers' Latte cannot do without: one token, attended to by no block
DECAY = 0.9999  # of the moving average


class Trained:
    """The networks of a case, ours and diffusers', with their optimizers; made when they are first wanted."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self._networks: dict[Any, nn.Module] = {}
        self._optimizers: dict[Any, torch.optim.Optimizer] = {}
        self._averages: dict[Any, EMA] = {}
        generator = torch.Generator().manual_seed(0)
        latents, target = torch.randn(2, case.batch, 4, *case.grid, generator=generator).to(device)
        times = torch.rand(case.batch, generator=generator).to(device) * 1000
        labels = torch.randint(LABELS, (case.batch,), generator=generator).to(device)
        self.inputs, self.target = (latents, times, labels), target
        self._keeps_memory: bool | None = None

    def prepare(self, way: Way) -> None:
        """What is not to be timed: after another way with memory, a first step faults in what it needs."""
        if way.keeps_memory != self._keeps_memory:
            self._keeps_memory = way.keeps_memory
            keep_freed_memory(way.keeps_memory)
            self.step(way)

    def step(self, way: Way) -> None:
        network, optimizer = self._network(way), self._optimizer(way)
        with ExitStack() as inside:
            if way.plain:
                inside.enter_context(plain_kernels(*way.plain))
            if way.precision != "float32":
                inside.enter_context(torch.autocast(self.device.type, DTYPES[way.precision]))
            out = network(*self.inputs)
        F.mse_loss(out.float(), self.target).backward()
        optimizer.step()
        if way.averaged:
            self._average(way).update(self._plain(way), 1)
        optimizer.zero_grad(set_to_none=True)

    def stays(self, way: Way) -> int:
        """Bytes of weights, averages and optimizer."""
        kept: list[Any] = list(self._weights(way))
        if way.averaged:
            kept += self._average(way).averages.values()
        for state in self._optimizer(way).state.values():
            kept += state.values()
        return sum(value.numel() * value.element_size() for value in kept if isinstance(value, Tensor))

    def _weights(self, way: Way) -> list[nn.Parameter]:
        return list(self._plain(way).parameters())

    def _plain(self, way: Way) -> nn.Module:
        """What holds the weights of a way."""
        return self._network(Way("", way.precision, peer=way.peer, sharded=way.sharded))

    def _average(self, way: Way) -> EMA:
        key = way.peer, way.sharded
        if key not in self._averages:
            self._averages[key] = EMA(self._plain(way), DECAY)
        return self._averages[key]

    def _optimizer(self, way: Way) -> torch.optim.Optimizer:
        key = way.peer, way.fused, way.sharded
        if key not in self._optimizers:
            self._optimizers[key] = torch.optim.AdamW(self._weights(way), lr=1e-4, fused=way.fused or None)
        return self._optimizers[key]

    def _network(self, way: Way) -> nn.Module:
        """Ways of ours share their weights."""
        key = way.peer, way.compiled, way.sharded
        if key not in self._networks:
            with self.device:  # made there at once: large ones take long on a CPU
                self._networks[key] = self._make(way)
        network = self._networks[key]
        if isinstance(network, _Ours):
            network.set(way)
        return network

    def _make(self, way: Way) -> nn.Module:
        if way.peer is not None:
            return _Diffusers(self.case, way.peer)
        if not way.compiled:
            torch.manual_seed(0)
            network = DiT(**options(self.case))
            return _sharded(network, self.device, way.precision) if way.sharded else _Ours(network)
        plain = self._network(Way("", way.precision))
        assert isinstance(plain, _Ours)
        return _Ours(plain.network, way.compiled)


class _Ours(nn.Module):
    def __init__(self, network: DiT, compiled: str = "") -> None:
        super().__init__()
        self.network = network
        self.blocks = network.blocks
        self.call: Any = network
        if compiled == "blocks":
            self.blocks = nn.ModuleList(torch.compile(block) for block in network.blocks)  # type: ignore[misc]
        elif compiled:
            self.call = torch.compile(network, mode="reduce-overhead" if compiled == "graphs" else None)

    def set(self, way: Way) -> None:
        self.network.checkpoint_every = way.checkpointing
        for module in self.network.modules():
            if hasattr(module, "backend"):
                module.backend = way.backend

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        kept, self.network.blocks = self.network.blocks, self.blocks
        try:
            out: Tensor = self.call(latents, times, labels=labels)
        finally:
            self.network.blocks = kept
        return out


class _Diffusers(nn.Module):
    """Diffusers' class of the same width, patch and tokens."""

    def __init__(self, case: Case, blocks: int) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel, LatteTransformer3DModel

        size = preset_options(case.preset)
        shared = {
            "num_attention_heads": size["num_heads"], "attention_head_dim": size["hidden_size"] // size["num_heads"],
            "in_channels": 4, "out_channels": 4, "num_layers": blocks, "sample_size": case.grid[1],
            "patch_size": size["patch_size"][1],
        }  # fmt: skip
        self.network: Any
        if case.grid[0] == 1:
            self.network = DiTTransformer2DModel(**shared, num_embeds_ada_norm=LABELS)
        else:
            self.network = LatteTransformer3DModel(
                **shared, video_length=case.grid[0], caption_channels=CAPTION, activation_fn="gelu-approximate",
                norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, attention_bias=True,
            )  # fmt: skip
        self.is_image = case.grid[0] == 1

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        if self.is_image:
            out = self.network(latents[:, :, 0], timestep=times.long(), class_labels=labels).sample[:, :, None]
        else:
            caption = latents.new_zeros(len(latents), 1, CAPTION)
            out = self.network(latents, timestep=times.long(), encoder_hidden_states=caption).sample
        return out


class _Sharded(nn.Module):
    """Ours as it is trained in parts: the trainee of a run, cut as a run cuts it."""

    def __init__(self, trainee: nn.Module) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.trainee(latents, times, labels, None)
        return out


def _sharded(network: DiT, device: torch.device, precision: str) -> nn.Module:
    from mmdit.training.sharding import shard_network
    from mmdit.training.trainee import Trainee

    trainee = Trainee(network, None)
    told = {"float32": "no", "bfloat16": "bf16"}[precision]
    # The three things that are asked of accelerate's own, which remembers the first precision that it was told.
    like = SimpleNamespace(device=device, num_processes=1, mixed_precision=told)
    shard_network(trainee, network.blocks, cast(Any, like))
    return _Sharded(trainee)


@contextmanager
def group_of_one(device: str) -> Iterator[None]:
    """Inside, this process is a group of its own, for ways that are `sharded`."""
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder) / "group").as_uri()
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=place, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
