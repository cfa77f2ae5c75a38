"""`mmdit bench gpu`: all that there is to know of one GPU, part by part, into a folder."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

TABLE = "gpu.md"


def main(
    out: Annotated[Path, typer.Option(help="The folder of results; what is there already is not measured again.")],
    part: Annotated[list[str] | None, typer.Option(help="Only parts that begin so, as train; repeat it.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, as on a CPU: whether all of it works.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    runs: Annotated[int, typer.Option(min=1, help="So many of each; the median is told.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="Seconds for a process; what it hangs in is left out.")] = 1200,
) -> None:
    """Measures one GPU: attention kernels by shape, training steps, memory, FSDP2's cost, sampling.

    Each part has a process of its own and a JSON file in the folder, which holds each row as soon as it is measured.
    A row that ends its process or outlasts its limit becomes an error in the table, and the rest is measured. Stopped
    at any moment, the same command goes on where it was. FOLDER/gpu.md is the table of all that is there.

    \b
    attention        kernels by shape, and the default that this says beside the one that is taken
    train-image-64   ... -128, -256: steps of DiT-XL/2 at 256 tokens; train-factorized-4, train-joint-4 ...: video
    memory           of a step, beside diffusers' class without checkpointing
    fsdp             the same step with whole weights and under FSDP2 in a group of one process
    sample           250 steps of DDPM with guidance, beside diffusers' DiTPipeline with the same weights

    Example:
      mmdit bench gpu --out gpu_results
      mmdit bench gpu --out gpu_results --part train --part memory
      mmdit bench gpu --out tiny_results --tiny --device cpu --part attention --runs 1
    """
    from mmdit import files
    from mmdit.errors import Refused, Stopped
    from mmdit.tools import clip_options
    from mmdit.tools.gpu_parts import parts
    from mmdit.tools.gpu_table import table

    device = clip_options.device_of(device)
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise Refused("nothing here measures this device", where="--device", got=device, expected="cuda, or cpu")
    tiny = tiny or device == "cpu"
    known = parts(tiny=tiny)
    wanted = [name for name in known if not part or any(name.startswith(word) for word in part)]
    for word in part or ():
        if not any(name.startswith(word) for name in known):
            raise Refused("no such part", where="--part", got=word, expected=", ".join(known))
    for name in known:
        _check_same(out / f"{name}.json", device, tiny)
    failed = []
    for name in wanted:
        error = measure(name, out / f"{name}.json", device, runs, limit, tiny=tiny)
        files.write_text(out / TABLE, table(out, known))
        print(f"{name}: {error or 'measured'}", flush=True)
        failed += [name] * bool(error)
    print(out / TABLE)
    if failed:
        raise Stopped("parts that were not measured", where=out, got=", ".join(failed), fix="the same command goes on")


def _check_same(path: Path, device: str, tiny: bool) -> None:
    from mmdit.errors import Refused
    from mmdit.tools.bench_output import device_name
    from mmdit.tools.gpu_parts import read

    try:
        there = read(path)
        # Of a part whose process could not begin there is no more than that.
        was = (there["machine"]["device"], there["tiny"]) if there.get("machine") else there["done"] or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("no result of this command", where=path, got=f"{type(error).__name__}: {error}",
                      fix="name another folder with --out") from None  # fmt: skip
    now = device_name(device), tiny
    if was not in (None, now):
        raise Refused("results of another device or size are there", where=path, got=was, expected=now,
                      fix="name another folder with --out")  # fmt: skip


def measure(name: str, path: Path, device: str, runs: int, limit: int, *, tiny: bool) -> str | None:
    """Measures what a part lacks, process after process; None when it is done, else why it is not."""
    from mmdit import files
    from mmdit.tools.gpu_parts import read

    while not (was := read(path))["done"]:
        if was["under_way"] is not None:  # an earlier run was stopped in it; it is to be measured again
            files.write_json(path, was | {"under_way": None})
        error = _run(_command(name, path, device, runs, tiny=tiny), limit)
        result: dict[str, Any] = read(path)
        if error is None:
            return result["error"] if not result["done"] else None
        if result["under_way"] is not None:  # what the process ended in; the rest goes on without it
            result["rows"].append({"row": result["under_way"], "way": result["under_way"], "error": error})
        elif len(result["rows"]) == len(was["rows"]):  # nothing was measured, so that another one would end alike
            result["error"] = error
        files.write_json(path, result | {"part": name, "under_way": None})
        if result["error"]:
            return error
    return None


def _command(name: str, path: Path, device: str, runs: int, *, tiny: bool) -> list[str]:
    size = "tiny" if tiny else "full"
    return [sys.executable, "-m", "mmdit.tools.gpu_parts", name, str(path), device, str(runs), size]


def _run(command: list[str], limit: int) -> str | None:
    """Why a process ended without success; None where it had it. It and what it started are gone when this returns."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    try:
        told = process.communicate(timeout=limit)[1].strip().splitlines()
    except subprocess.TimeoutExpired:
        return f"no end within {limit} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode == 0:
        return None
    ending = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return f"ended by {ending}" + (f": {told[-1]}" if told else "")
