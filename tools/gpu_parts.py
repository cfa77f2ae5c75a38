"""The parts of `mmdit bench gpu`, each measured in a process of its own: `python -m mmdit.tools.gpu_parts ...`."""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmdit import files


@dataclass(frozen=True)
class Part:
    """`kind` says which table it is: "attention", "steps" or "sampling". `rows(device, runs)` gives the names of the
    rows, each with what measures it."""

    title: str
    kind: str
    rows: Callable[[str, int], Any]


def parts(*, tiny: bool) -> dict[str, Part]:
    """All parts by name; with `tiny`, of small networks on few and small clips."""
    found = {"attention": Part("Attention, forward and backward", "attention", partial(_attention, tiny=tiny))}
    batches: dict[str, tuple[int, ...]] = {"image": (2,) if tiny else (64, 128, 256)}
    batches |= dict.fromkeys(("factorized", "joint"), (1,) if tiny else (4, 8))
    for kind, sizes in batches.items():
        for batch in sizes:
            rows = partial(_training, kind, batch, tiny=tiny, all_ways=batch == sizes[0])
            found[f"train-{kind}-{batch}"] = Part(f"Training step, {kind}, batch {batch}", "steps", rows)
    batch = batches["image"][0]
    memory, sharding = (partial(_other, name, batch, tiny=tiny) for name in ("memory", "sharding"))
    found["memory"] = Part(
        f"Memory of a training step, image, batch {batch}; target: less than the first", "steps", memory
    )
    found["fsdp"] = Part(f"FSDP2 in a group of one, image, batch {batch}", "steps", sharding)
    found["sample"] = Part("Sampling with guidance", "sampling", partial(_sample, tiny=tiny))
    return found


def _attention(device: str, runs: int, *, tiny: bool) -> Any:
    from mmdit.training.gpu_rows import attention_rows

    return attention_rows(device, runs, tiny=tiny)


def _training(kind: str, batch: int, device: str, runs: int, *, tiny: bool, all_ways: bool) -> Any:
    from mmdit.training.gpu_rows import make_case, training_rows

    return training_rows(make_case(kind, batch, tiny=tiny), device, runs, all_ways=all_ways)


def _other(name: str, batch: int, device: str, runs: int, *, tiny: bool) -> Any:
    from mmdit.training import gpu_rows

    rows = {"memory": gpu_rows.memory_rows, "sharding": gpu_rows.sharding_rows}[name]
    return rows(gpu_rows.make_case("image", batch, tiny=tiny), device, runs)


def _sample(device: str, runs: int, *, tiny: bool) -> Any:
    from mmdit.pipelines.sampling_speed import sampling_rows

    return sampling_rows(device, runs, tiny=tiny)


def read(path: Path) -> dict[str, Any]:
    """The result of a part as far as it came; of one that was not begun, without a row."""
    if not path.exists():
        return {"done": False, "under_way": None, "error": None, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure_part(name: str, path: Path, device: str, runs: int, *, tiny: bool) -> None:
    """Measures the rows of a part that `path` lacks; the file holds each as soon as it is measured.

    Raises what goes wrong in the device for good, so that this process ends; the file then says how far it came.
    """
    import torch

    from mmdit.tools.bench_output import commit, machine, today

    result = read(path) | {"part": name, "device": device, "tiny": tiny, "runs": runs}
    result |= {"error": None, "under_way": None}
    if ":" in device:  # for the group of one
        torch.cuda.set_device(device)
    result |= {"machine": machine(device), "commit": commit(), "date": today()}
    try:
        for row, measure in parts(tiny=tiny)[name].rows(device, runs):
            if any(known["row"] == row for known in result["rows"]):
                continue
            files.write_json(path, result | {"under_way": row})
            result["rows"] += [{"row": row, **figures} for figures in measure()]
            files.write_json(path, result)
            _settle(device)
    except ImportError as error:
        files.write_json(path, result | {"error": f"this needs a package that is not installed: {error.name or error}"})
        return
    files.write_json(path, result | {"done": True})


def _settle(device: str) -> None:
    """Frees what a row left; raises where the device takes no more work."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device != "cpu":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    part, place, on, times, size = sys.argv[1:]
    measure_part(part, Path(place), on, int(times), tiny=size == "tiny")
