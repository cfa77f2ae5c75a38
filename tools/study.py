"""`mmdit study`: trains the points of a study, each a normal run, measures them, and shows what came of it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.training.study import Outcome, Row, Study, Trial


def main(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one: scaling, blocks, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe of all points, as data.store=STORE.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of its runs and results.")] = Path("studies"),
    only: Annotated[list[str] | None, typer.Option(help="A point to train; repeat it for several.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be trained, and end.")] = False,
) -> None:
    """Trains a recipe in several ways, each a run of its own, and writes a table (and a plot) of what they reached.

    Stopped at any moment, the same command goes on where it was. Each run is one that `mmdit train` makes and
    `mmdit evaluate` measures: the commands are printed.

    Example:
      mmdit study scaling data.store=demo/store --out studies
    """
    from mmdit.config import load_config
    from mmdit.errors import Refused
    from mmdit.training.study import Study, plan_study, summarise

    found = load_config(Study, _find(study))
    if only and (unknown := set(only) - found.points.keys()):
        raise Refused("no such point", where="--only", got=", ".join(sorted(unknown)), expected=", ".join(found.points))
    trials = [trial for trial in plan_study(found, overrides or []) if not only or trial.point in only]
    folder = out / Path(study).stem
    print("\n".join(_planned(trials)), flush=True)
    if plan:
        return
    outcomes = [_carry_out(trial, found, folder) for trial in trials]
    rows = summarise(outcomes)
    _write(folder, found, outcomes, rows)
    print("\n".join(["", *_table(rows)]))
    print(f"results: {folder / 'study.json'}")


def _find(study: str) -> str:
    """A file as it is; a name alone is a shipped study's."""
    import importlib.resources

    if Path(study).is_file():
        return study
    shipped = Path(str(importlib.resources.files("mmdit.configs"))) / "studies"
    named = shipped / f"{study.removesuffix('.yaml')}.yaml"
    if named.is_file():
        return str(named)
    from mmdit.errors import Refused

    known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise Refused("no such study", got=study, expected=f"a YAML file, or one of {known}")


def _planned(trials: "Sequence[Trial]") -> list[str]:
    lines = [f"{'run':32} {'GMACs a clip':>13} {'steps':>7} {'training PMACs':>15}"]
    lines += [f"{trial.name:32} {trial.macs / 1e9:13.4f} {trial.steps:7} {trial.training_macs / 1e15:15.4f}"
              for trial in trials]  # fmt: skip
    return lines


def _carry_out(trial: "Trial", study: "Study", folder: Path) -> "Outcome":
    """Trains and evaluates where that is not done yet."""
    from mmdit.config import load_config
    from mmdit.evaluation.protocol import load_protocol
    from mmdit.training.config import RunConfig
    from mmdit.training.study import is_done, read_outcome

    place = folder / trial.name
    told = folder / f"{trial.name}.json"
    protocol = {"name": study.protocol, **load_protocol(study.protocol, []).model_dump(mode="json")}
    recipe = load_config(RunConfig, study.recipe, trial.overrides)
    if not is_done(recipe, place, told, protocol):
        _call("train", [study.recipe, *trial.overrides, "--out", str(place)])
        _call(
            "evaluate",
            [str(place), "--store", str(recipe.data.store), "--protocol", study.protocol, "--out", str(told)],
        )
    return read_outcome(trial, place, json.loads(told.read_text(encoding="utf-8")))


def _call(verb: str, words: list[str]) -> None:
    """One verb in a process of its own, so that a point leaves nothing behind in this one."""
    from mmdit.errors import Stopped

    print(f"\nmmdit {verb} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", f"mmdit.tools.{verb}", *words], check=False).returncode
    if code:
        raise Stopped("a run of the study has ended early", got=f"mmdit {verb} ended with {code}",
                      fix="see above; the same command goes on from there")  # fmt: skip


def _table(rows: "Sequence[Row]") -> list[str]:
    names = list(rows[0].mean)
    head = "".join(f"{name:>26}" for name in names)
    lines = [f"{'point':24} {'runs':>4} {'steps':>7} {'GMACs':>9} {'minutes':>8}{head}"]
    for row in rows:
        figures = "".join(f"{f'{row.mean[name]:.4f} ± {row.spread[name]:.4f}':>26}" for name in names)
        minutes = row.seconds / 60
        lines.append(f"{row.point:24} {row.trials:4} {row.steps:7} {row.macs / 1e9:9.4f} {minutes:8.1f}{figures}")
    return lines


def _write(folder: Path, study: "Study", outcomes: "Sequence[Outcome]", rows: "Sequence[Row]") -> None:
    """study.json, and where the study wants it a plot over multiply-accumulates with rank correlations."""
    from dataclasses import asdict

    from mmdit import files
    from mmdit.tools.bench_output import commit, machine
    from mmdit.training.study import HIGHER, rank_correlation

    macs = [outcome.trial.macs for outcome in outcomes]
    correlations: dict[str, Any] = {}
    if study.plot:
        for name in outcomes[0].figures:
            sign = -1 if name in HIGHER else 1
            correlations[name] = rank_correlation(macs, [sign * outcome.figures[name] for outcome in outcomes])
            print(f"rank correlation of multiply-accumulates and {name}: {sign * correlations[name]:+.3f}")
        _draw(folder / "study.png", outcomes)
    files.write_json(folder / "study.json", {
        "study": study.model_dump(), "commit": commit(), **machine("cpu"), "rank_correlations": correlations,
        "rows": [asdict(row) for row in rows], "runs": [asdict(outcome) for outcome in outcomes],
    })  # fmt: skip


def _draw(path: Path, outcomes: "Sequence[Outcome]") -> None:
    from mmdit.report.panels import Curve, Panel, draw_panels

    ordered = sorted(outcomes, key=lambda outcome: outcome.trial.macs)
    panels = []
    for name in ordered[0].figures:
        macs = [outcome.trial.macs / 1e9 for outcome in ordered]
        values = [outcome.figures[name] for outcome in ordered]
        panels.append(
            Panel("GMACs of a forward pass on a clip", name, [Curve(name, "#1f6feb", macs, values)], log=True)
        )
    draw_panels(path, panels, title="Quality over compute", columns=len(panels))


if __name__ == "__main__":
    run(main)
