"""How fast a whole training step is, from latents: each way of computing it beside the others, in turns.

A step is forward, mean squared error, backward and AdamW, on tensors that are on the device already.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.models import DiT, model_cost
from mmdit.models.cpu_kernels import KERNELS, plain_kernels
from mmdit.models.presets import preset_options
from mmdit.training.allocator import keep_freed_memory
from mmdit.training.memory import DTYPES, most_held

LABELS = 1000
CAPTION = 8  # width of the caption that diffusers' Latte cannot do without: one token, attended to by no block
PRODUCTS = ((1024, 384, 1536), (2048, 2048, 2048))  # rows, inputs, outputs of what the device's rate is measured on
ROOM = 2 * 10**10  # operations that a product is timed over on a CPU; 500 times as many on a GPU
PRODUCTS_CUDA = ((16384, 1152, 4608), (8192, 8192, 8192))


@dataclass(frozen=True)
class Case:
    """What is trained: a preset in a layout, on `batch` clips of latents of `grid` (frame, height, width)."""

    preset: str
    layout: str
    grid: tuple[int, int, int]
    batch: int

    @property
    def name(self) -> str:
        return f"{self.preset} {self.layout}, {self.batch} x {'x'.join(map(str, self.grid))}"

    @property
    def tokens(self) -> int:
        """Of the batch."""
        patch = preset_options(self.preset)["patch_size"]
        return self.batch * (self.grid[0] // patch[0]) * (self.grid[1] // patch[1]) * (self.grid[2] // patch[2])

    @property
    def flops(self) -> int:
        """Of a step: a multiply-accumulate is two, the backward pass costs twice the forward one."""
        return 3 * 2 * self.batch * model_cost(_options(self), self.grid).macs


@dataclass(frozen=True)
class Way:
    """One way to compute the step.

    Args:
        precision: "float32" or "bfloat16" (under autocast, weights in float32).
        peer: blocks of diffusers' class that is trained in place of ours; None for ours.
        plain: which of `mmdit.models.cpu_kernels.KERNELS` are left out.
        fused: whether AdamW is one kernel; else torch's default.
        backend: of attention.
        compiled: "blocks", "whole", or "graphs" (whole, with CUDA graphs where the device has them).
        checkpointing: every so-many-th block is computed again in the backward pass; 0 for none.
        keeps_memory: whether freed memory stays with the process: `mmdit.training.allocator`. It does in training.
    """

    name: str
    precision: str
    peer: int | None = None
    plain: tuple[str, ...] = ()
    fused: bool = True
    backend: str = "auto"
    compiled: str = ""
    checkpointing: int = 0
    keeps_memory: bool = True


@dataclass
class Result:
    """Seconds of each run, and those that this process was on a core; most bytes at one time, weights and optimizer
    included; `error` where it cannot run."""

    way: Way
    flops: int
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    memory: int = 0
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ways(case: Case, device: str) -> Iterator[Way]:
    """All that there is to compare: peers, the plain loop, ours, and ours without each thing that makes it quicker."""
    depth, on_cpu = preset_options(case.preset)["depth"], device == "cpu"
    peers = {"diffusers DiT": depth}
    if case.grid[0] > 1:  # its depth counts pairs of blocks: as many attentions as ours, or as many MLPs
        peers = {f"diffusers Latte, {blocks}+{blocks} blocks": blocks for blocks in (depth, depth // 2)}
    for precision in ("float32", "bfloat16"):
        for name, blocks in peers.items():
            yield Way(f"{name}, {precision}", precision, peer=blocks, fused=False, keeps_memory=False)
        yield Way(f"plain eager, {precision}", precision, plain=KERNELS, fused=False, keeps_memory=False)
        ours = f"mmdit, {precision}"
        yield Way(ours, precision)
        for kernel in KERNELS if on_cpu else ():
            yield Way(f"{ours}, plain {kernel}", precision, plain=(kernel,))
        if on_cpu:
            yield Way(f"{ours}, freed memory given back", precision, keeps_memory=False)
        yield Way(f"{ours}, AdamW not fused", precision, fused=False)
        for backend in ("math", "sdpa") if on_cpu else ("math", "sdpa", "xformers"):
            yield Way(f"{ours}, attention by {backend}", precision, backend=backend)
        yield Way(f"{ours}, checkpointing", precision, checkpointing=1)
        for compiled in ("blocks", "whole", "graphs"):
            yield Way(f"{ours}, compiled {compiled}", precision, compiled=compiled)


def measure(case: Case, chosen: Sequence[Way], device: str, runs: int) -> list[Result]:
    """Each way `runs` times, in turns, so that a slow minute slows all; a first time is left out. The results of the
    device's own products, as ways of their own, come first."""
    trained = _Trained(case, torch.device(device))
    results = [Result(way, _flops(case, way)) for way in chosen]
    work: list[tuple[Result, Callable[[], None]]] = []
    for precision in dict.fromkeys(way.precision for way in chosen):
        for shape in PRODUCTS if device == "cpu" else PRODUCTS_CUDA:
            work.append(_product(shape, precision, device))
    for number in range(runs + 1):
        for result, run in work:
            _time(result, run, device, keep=number > 0)
        for result in results:
            if not result.error:
                _time(result, partial(trained.step, result.way), device, keep=number > 0, before=trained.prepare)
    for result in results:
        if not result.error:
            result.memory = trained.stays(result.way) + _peak(partial(trained.step, result.way), device)
    return [result for result, _ in work] + results


def _time(
    result: Result, run: Callable[[], None], device: str, *, keep: bool, before: Callable[[Way], None] | None = None
) -> None:
    try:
        if before is not None:
            before(result.way)
        began, busy = time.perf_counter(), time.process_time()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    except Exception as error:  # a kernel or a compiler that is not there, or no memory: a line of the table
        result.error = (str(error).strip() or type(error).__name__).splitlines()[0]
        return
    if keep:
        result.seconds.append(seconds)
        result.busy.append(busy)


def _product(shape: tuple[int, int, int], precision: str, device: str) -> tuple[Result, Callable[[], None]]:
    """A product of these rows, inputs and outputs, as often as takes a while."""
    rows, inputs, outputs = shape
    times = max(1, (ROOM if device == "cpu" else 500 * ROOM) // (2 * rows * inputs * outputs))
    x, weight = (torch.randn(n, inputs, device=device, dtype=DTYPES[precision]) for n in (rows, outputs))

    def run() -> None:
        for _ in range(times):
            F.linear(x, weight)

    name = f"product {rows}x{inputs}x{outputs}, {precision}"
    return Result(Way(name, precision), times * 2 * rows * inputs * outputs), run


class _Trained:
    """The networks of a case, ours and diffusers', with their optimizers; made when they are first wanted."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self._networks: dict[Any, nn.Module] = {}
        self._optimizers: dict[Any, torch.optim.Optimizer] = {}
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
        optimizer.zero_grad(set_to_none=True)

    def stays(self, way: Way) -> int:
        """Bytes of weights and optimizer."""
        kept: list[Any] = list(self._weights(way))
        for state in self._optimizer(way).state.values():
            kept += state.values()
        return sum(value.numel() * value.element_size() for value in kept if isinstance(value, Tensor))

    def _weights(self, way: Way) -> list[nn.Parameter]:
        return list(self._network(Way("", way.precision, peer=way.peer)).parameters())

    def _optimizer(self, way: Way) -> torch.optim.Optimizer:
        key = way.peer, way.fused
        if key not in self._optimizers:
            self._optimizers[key] = torch.optim.AdamW(self._weights(way), lr=1e-4, fused=way.fused or None)
        return self._optimizers[key]

    def _network(self, way: Way) -> nn.Module:
        """Ways of ours share their weights."""
        key = way.peer, way.compiled
        if key not in self._networks:
            self._networks[key] = self._make(way).to(self.device)
        network = self._networks[key]
        if isinstance(network, _Ours):
            network.set(way)
        return network

    def _make(self, way: Way) -> nn.Module:
        if way.peer is not None:
            return _Diffusers(self.case, way.peer)
        if not way.compiled:
            torch.manual_seed(0)
            return _Ours(DiT(**_options(self.case)))
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


def _flops(case: Case, way: Way) -> int:
    """Of a step; diffusers' Latte has an MLP for each attention, as the alternating layout has."""
    if way.peer is None or case.grid[0] == 1:
        return case.flops
    latte = {**_options(case), "layout": "alternating", "depth": 2 * way.peer}
    return 3 * 2 * case.batch * model_cost(latte, case.grid).macs


def _options(case: Case) -> dict[str, Any]:
    more = {"sample_size": case.grid, "in_channels": 4, "layout": case.layout, "num_classes": LABELS}
    return {**preset_options(case.preset), **more}


def _peak(run: Callable[[], None], device: str) -> int:
    """Most bytes over what there was before."""
    if device == "cpu":
        return most_held(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
