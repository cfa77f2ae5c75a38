"""`mmdit bench compare`: an earlier result, measured again in its own commit and in this one, in turns."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mmdit.errors import Refused, Stopped

LIMIT = 3600  # seconds for one run


def main(
    old: Annotated[Path, typer.Argument(help="What a benchmark printed with --json.")],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each commit; medians are compared.")] = 3,
    commit: Annotated[str | None, typer.Option(help="Another commit than the result's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Runs the benchmark of an earlier result in that result's commit and in this one, in turns, and prints the ratios.

    Figures from another day or another machine say little about a change; these are from one run on one machine. The
    earlier commit is checked out into a temporary worktree, and runs with the packages that are installed now.

    Example:
      mmdit bench train demo_fashion data.store=my_store --json > before.json
      mmdit bench compare before.json
    """
    from mmdit.tools.bench_output import source_folder, tell

    command, was = _read(old)
    source = source_folder()
    with tempfile.TemporaryDirectory() as folder:
        before = _check_out(source, commit or was, Path(folder) / "tree")
        try:
            sides = {"before": _importable(before, Path(folder) / "before"),
                     "now": _importable(source, Path(folder) / "now")}  # fmt: skip
            told: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, place in sides.items():
                    told[name].append(_measure(command, place))
        finally:
            subprocess.run(["git", "-C", str(source), "worktree", "remove", "--force", str(before)],
                           capture_output=True, timeout=60, check=False)  # fmt: skip
    rows = list(_compare(told["before"], told["now"]))
    lines = [f"{'figure':56} {'before':>12} {'now':>12} {'now/before':>10}"]
    lines += [f"{row['figure']:56} {row['before']:12.5g} {row['now']:12.5g} {row['ratio']:10.3f}" for row in rows]
    tell({"command_compared": command, "before": commit or was, "rows": rows}, lines, as_json=as_json)


def _read(path: Path) -> tuple[list[str], str]:
    """The words and the commit of a result."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        command, commit = list(map(str, result["command"])), result["commit"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused("no result of a benchmark", where=path, got=f"{type(error).__name__}: {error}",
                      expected="what `mmdit bench KIND --json` printed") from None  # fmt: skip
    if not command or command[0] == "compare":
        raise Refused("this result cannot be measured again", where=path, got=" ".join(command))
    if not commit:
        raise Refused("the result names no commit", where=path, fix="name one with --commit")
    return command, str(commit).rstrip("+")  # what was changed and not committed is not to be had any more


def _check_out(source: Path, commit: str, target: Path) -> Path:
    done = subprocess.run(["git", "-C", str(source), "worktree", "add", "--detach", str(target), commit],
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["git failed"])[-1]
        raise Refused("the commit cannot be checked out", where=source, got=f"{commit}: {reason}",
                      fix="run this in a clone that has it")  # fmt: skip
    return target


def _importable(tree: Path, folder: Path) -> Path:
    """A folder to import a source tree from: in it, all of the package is where it is when it is installed."""
    package = folder / "mmdit"
    package.mkdir(parents=True)
    for part in [*(tree / "mmdit").iterdir(), *(tree / name for name in ("configs", "pipelines", "tools"))]:
        (package / part.name).symlink_to(part)
    return folder


def _measure(command: list[str], place: Path) -> dict[str, float]:
    """The figures of one run, by their path in the JSON."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    words = command if "--json" in command else [*command, "--json"]
    try:
        done = subprocess.run([sys.executable, "-m", "mmdit.tools.bench", *words], env=environment, timeout=LIMIT,
                              capture_output=True, text=True, check=False)  # fmt: skip
        figures = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        told = done.stderr.strip().splitlines()[-1:] if not isinstance(error, subprocess.TimeoutExpired) else []
        raise Stopped(
            "a benchmark gave no figures", where=place.name, got=(told or [type(error).__name__])[0]
        ) from None
    return dict(_leaves(figures.get("figures", figures) if isinstance(figures, dict) else figures))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def _compare(before: list[dict[str, float]], now: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """The figures that both have, medians, and now over before."""
    for figure in before[0]:
        if all(figure in run for run in (*before, *now)):
            old = statistics.median(run[figure] for run in before)
            new = statistics.median(run[figure] for run in now)
            if old and old != new:
                yield {"figure": figure, "before": old, "now": new, "ratio": new / old}
