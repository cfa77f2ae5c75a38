"""How every benchmark tells its figures: a table for people, or JSON with machine, commit and command."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def tell(figures: Any, lines: list[str], *, as_json: bool, device: str = "cpu") -> None:
    """Prints the figures.

    Args:
        figures: plain values, the same keys for every machine and commit, so that they can be compared.
        lines: the same for people, below a line that names the machine.
        device: what was measured: cpu, cuda, cuda:1, ...
    """
    about = machine(device)
    if as_json:
        from mmdit.tools.cli import words_given

        print(json.dumps({"command": words_given(), "commit": commit(), "date": today(), **about, "figures": figures}))
    else:
        print("\n".join([", ".join(f"{name} {value}" for name, value in about.items()), *lines]))


def machine(device: str) -> dict[str, Any]:
    """What of this machine decides the figures: the device's name, cores, threads, versions."""
    import torch

    return {
        "device": device_name(device), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def device_name(device: str) -> str:
    """The maker's name of a device of torch."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    from mmdit.report.summary import cpu_name

    return cpu_name()


def source_folder() -> Path:
    """Where this program's source lies."""
    return Path(__file__).resolve().parent.parent


def commit() -> str | None:
    """The commit of this program's source, with "+" after it where files differ from it; None where none is known."""
    git = ["git", "-C", str(source_folder())]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20, check=True)
        state = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True,
                               timeout=20, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + ("+" if state.stdout.strip() else "")


def today() -> str:
    """The date of this result, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
