"""What is measured of attention and of training on one GPU, row by row; a small size of all of it for a CPU.

A row is plain values. Each is measured by itself, and leaves nothing on the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mmdit.models.attention import choose_backend
from mmdit.training.attention_speed import DTYPES, Shape, measure_attention, shapes

if TYPE_CHECKING:
    from mmdit.training.speed_ways import Case, Way

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], list[Row]]]]
"""The name of each, with what measures it: one row, or several that are measured in turns."""

BACKENDS = ("math", "sdpa", "xformers")
CASES = {"image": ("space", (1, 32, 32)), "factorized": ("factorized", (16, 32, 32)), "joint": ("joint", (16, 32, 32))}
TARGETS = {"space": 550.0, "factorized": 30.0, "joint": 28.0}  # clips/s of DiT-XL/2 in bfloat16 on one H200
PRESET = "DiT-XL/2"
# Bytes of the queries: those of 4,096 tokens have weights of 8 GB in the plain form; those over time are 100,000
# sequences of 16 tokens of DiT-XL in bfloat16, and fewer of 64.
SPACE, TIME = 15 * 10**7, 4 * 10**9


def attention_rows(device: str, runs: int, *, tiny: bool) -> Rows:
    """Each shape in two precisions, by every kernel there is."""
    heads, head_dim = (2, 8) if tiny else (16, 72)
    space, time = (256 * heads * head_dim * 4, 64 * heads * head_dim * 4) if tiny else (SPACE, TIME)
    for precision, dtype in DTYPES.items():
        for most, kind in ((space, "space"), (time, "time")):
            for shape in shapes(head_dim, heads, most // dtype.itemsize):
                if shape.name.startswith(kind):
                    name = f"{shape.name}, {shape.batch} x {heads} heads of {head_dim}, {precision}"
                    yield name, partial(_attention, shape, precision, device, runs)


def _attention(shape: Shape, precision: str, device: str, runs: int) -> list[Row]:
    kernels = measure_attention(shape, precision, device, runs)
    seconds = {kernel.name: kernel.median for kernel in kernels if not kernel.error}
    errors = {kernel.name: kernel.error for kernel in kernels if kernel.error}
    taken = choose_backend(torch.device(device).type, DTYPES[precision], shape.tokens)
    row: Row = {"seconds": seconds, "errors": errors, "flops": shape.flops, "taken": taken}
    backends = {name: seconds[name] for name in BACKENDS if name in seconds}
    if not backends:
        return [row | {"error": "no backend can compute it"}]
    best = min(backends, key=backends.__getitem__)
    slower = backends[taken] / backends[best] if taken in backends else None
    return [row | {"fastest": min(seconds, key=seconds.__getitem__), "best": best, "slower": slower}]


def make_case(kind: str, batch: int, *, tiny: bool) -> "Case":
    """Of a kind in `CASES`; with `tiny`, a network for tests on a grid of 4 x 4 tokens."""
    from mmdit.training.speed_ways import Case

    layout, grid = CASES[kind]
    return Case("tiny", layout, (min(grid[0], 2), 8, 8), batch) if tiny else Case(PRESET, layout, grid, batch)


def training_rows(case: "Case", device: str, runs: int, *, all_ways: bool) -> Rows:
    """Whole steps in bfloat16, with the moving average: diffusers', then ours in each way.

    Args:
        all_ways: those too that are told apart once, on one batch: without each of what makes a step quicker.
    """
    from mmdit.models.presets import preset_options
    from mmdit.training.speed_ways import Way

    depth = preset_options(case.preset)["depth"]
    peers = {"diffusers DiT": depth}
    if case.grid[0] > 1:  # as many attentions as ours, or as many MLPs
        peers = {f"diffusers Latte, {blocks}+{blocks} blocks": blocks for blocks in (depth, depth // 2)}
    way = partial(Way, precision="bfloat16", averaged=True)
    ways = [way(name, peer=blocks, fused=False, keeps_memory=False) for name, blocks in peers.items()]
    ways.append(way("mmdit"))
    if all_ways:
        ways += [way("mmdit, AdamW not fused", fused=False), way("mmdit, no moving average", averaged=False)]
        ways += [way(f"mmdit, attention by {backend}", backend=backend) for backend in ("sdpa", "xformers")]
    ways += [way("mmdit, compiled blocks", compiled="blocks"), way("mmdit, compiled whole", compiled="whole")]
    if all_ways:
        ways.append(way("mmdit, compiled whole, CUDA graphs", compiled="graphs"))
    for every in (1, 2):
        name = f"mmdit, checkpointing {every}"
        ways.append(way(name, checkpointing=every))
        ways.append(way(f"{name}, compiled blocks", checkpointing=every, compiled="blocks"))
    for one in ways:
        yield one.name, partial(_steps, case, [one], device, runs)


def memory_rows(case: "Case", device: str, runs: int) -> Rows:
    """The memory of a step with nothing computed again in diffusers' network, and none, all or half in ours."""
    from mmdit.models.presets import preset_options
    from mmdit.training.speed_ways import Way

    depth = preset_options(case.preset)["depth"]
    ways = [Way("diffusers DiT, no checkpointing", "bfloat16", peer=depth, fused=False, keeps_memory=False)]
    ways += [Way(f"mmdit, checkpointing {every}", "bfloat16", checkpointing=every) for every in (0, 1, 2)]
    for one in ways:
        yield one.name, partial(_steps, case, [one], device, runs)


def sharding_rows(case: "Case", device: str, runs: int) -> Rows:
    """The same step with whole weights and under FSDP2 in a group of one process, in turns."""
    from mmdit.training.speed_step import group_of_one
    from mmdit.training.speed_ways import Way

    ways = [Way("mmdit, whole weights", "bfloat16", averaged=True),
            Way("mmdit, FSDP2 in a group of one", "bfloat16", averaged=True, sharded=True)]  # fmt: skip

    def both() -> list[Row]:
        with group_of_one(device):
            return _steps(case, ways, device, runs)

    yield "whole weights and FSDP2", both


def _steps(case: "Case", ways: "Sequence[Way]", device: str, runs: int) -> list[Row]:
    from mmdit.training.devices import device_peak
    from mmdit.training.model_speed import measure

    results = measure(case, ways, device, runs)
    products, steps = results[: -len(ways)], results[-len(ways) :]
    sheet = device_peak(torch.cuda.get_device_name(device), "bf16") if device != "cpu" else None
    rows: list[Row] = []
    for result in steps:
        row: Row = {"way": result.way.name, "case": case.name}
        if result.error:
            rows.append(row | {"error": result.error})
            continue
        rate = result.flops / result.median
        row |= {"seconds": result.median, "clips_per_s": case.batch / result.median, "flops_per_s": rate}
        # Graphs hold their memory for good, where the allocator does not see it come and go.
        row |= {"memory": None if result.way.compiled == "graphs" else result.memory}
        row |= {"sheet_share": sheet and rate / sheet}
        products_there = [product.flops / product.median for product in products if not product.error]
        row |= {"share": rate / max(products_there) if products_there else None}
        row |= {"target": TARGETS[case.layout] if case.preset == PRESET else None}
        rows.append(row)
    return rows
