"""Studies: the same training with one thing changed at a time, each point a normal run, and what came of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mmdit.config import Config, load_config
from mmdit.errors import Refused
from mmdit.latents.store import LatentStore
from mmdit.training.build import clip_cost
from mmdit.training.config import RunConfig
from mmdit.training.resume_rules import begun_with


class Study(Config):
    """A study: one recipe, and what its points change in it."""

    recipe: str
    """The recipe that all points start from, by name or path."""
    settings: list[str] = Field([])
    """Changes to it that all points have, as key=value."""
    points: dict[str, list[str]] = Field(min_length=2)
    """By name, the changes that make a point."""
    seeds: list[int] = Field([0], min_length=1)
    """Every point is trained with each of these."""
    compute: Literal["equal-steps", "equal-macs"] = "equal-steps"
    """equal-macs: a point whose steps cost more has fewer of them; all trainings cost what the first one does."""
    protocol: str = "fashion-small"
    """How `mmdit evaluate` judges the runs."""
    plot: bool = False
    """Draw the figures over the multiply-accumulates of a step."""


@dataclass(frozen=True)
class Trial:
    """One run of a study: its point, its seed, the recipe's changes, and what it costs.

    `macs`: multiply-accumulates of a forward pass on one clip, without its conditions; in the mean step.
    """

    point: str
    seed: int
    overrides: tuple[str, ...]
    steps: int
    batch_size: int
    macs: int

    @property
    def name(self) -> str:
        return f"{self.point}-seed{self.seed}"

    @property
    def training_macs(self) -> int:
        """Of all steps; backward costs twice the forward."""
        return 3 * self.macs * self.batch_size * self.steps


@dataclass(frozen=True)
class Outcome:
    """What a trial reached: figures by name, such as "held-out loss"; the lower the better unless named in HIGHER."""

    trial: Trial
    figures: Mapping[str, float]
    seconds: float


HIGHER = ("attributes",)


def plan_study(study: Study, overrides: Sequence[str]) -> list[Trial]:
    """The runs of a study, in order.

    Args:
        overrides: more changes for all points, such as data.store=STORE.

    Raises:
        Refused: a recipe that cannot be trained, or no store.
    """
    common, trials, first = [*study.settings, *overrides], list[Trial](), 0
    for point, changes in study.points.items():
        if not all(letter.isalnum() or letter in "-_." for letter in point):
            raise Refused("a point's name is no folder's name", got=repr(point), expected="letters, digits, - _ .")
        config = load_config(RunConfig, study.recipe, [*common, *changes])
        macs, steps = _mean_cost(config), config.steps
        first = first or macs * config.data.batch_size
        if study.compute == "equal-macs":
            steps = max(1, round(steps * first / (macs * config.data.batch_size)))
        for seed in study.seeds:
            more = (*common, *changes, f"seed={seed}", f"steps={steps}")
            trials.append(Trial(point, seed, more, steps, config.data.batch_size, macs))
    return trials


def _mean_cost(config: RunConfig) -> int:
    """Multiply-accumulates of a forward pass on a clip; where some steps train on single frames, in the mean step."""
    shape, images = _latent_shape(config), config.data.image_share
    image = clip_cost(config.model, (shape[0], 1, *shape[2:])) if images else 0
    return round((1 - images) * clip_cost(config.model, shape) + images * image)


def _latent_shape(config: RunConfig) -> tuple[int, int, int, int]:
    if config.data.store is None:
        raise Refused("a study needs a store", got="none", expected="data.store", fix="say data.store=STORE")
    store = LatentStore.open(config.data.store)
    groups = [group for group in store.groups if group.split == config.data.split]
    if not groups:
        raise Refused("no such split", where=store.place, got=config.data.split)
    shape = max(groups, key=lambda group: group.count).latent
    return shape[0], shape[1], shape[2], shape[3]


def is_done(recipe: RunConfig, run: Path, evaluation: Path, protocol: Mapping[str, Any]) -> bool:
    """Whether the run was trained by this recipe to its end, and evaluated then by this protocol ("name" and rules)."""
    begun = begun_with(run)
    if begun is None or not evaluation.is_file():
        return False
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": begun.precision})
    told = json.loads(evaluation.read_text(encoding="utf-8"))
    is_same = begun.model_dump(mode="json") == recipe.model_dump(mode="json")
    return is_same and told["protocol"] == protocol and told["model"]["step"] == recipe.steps


def read_outcome(trial: Trial, run: Path, evaluation: Mapping[str, Any]) -> Outcome:
    """What a finished run and its evaluation tell.

    Raises:
        Refused: the run has no held-out loss.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
    if not losses:
        raise Refused("the run has no held-out loss", where=run, fix="set validate_every")
    figures = {"held-out loss": float(losses[-1])}
    told = evaluation["figures"]
    if told.get("attributes"):
        figures["attributes"] = fmean(share["generated"]["share"] for share in told["attributes"].values())
    for network, distance in (told.get("distances") or {}).items():
        figures[f"Fréchet distance, {network}"] = float(distance["frechet"])
    return Outcome(trial, figures, _seconds(lines))


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Those of all the times that a run was taken up: "seconds" begins anew at each."""
    told = [float(line["seconds"]) for line in lines]
    return sum(now for now, then in zip(told, [*told[1:], 0.0], strict=True) if then < now)


@dataclass(frozen=True)
class Row:
    """A point over its seeds: mean and sample deviation (0 for one seed) by figure."""

    point: str
    trials: int
    steps: int
    macs: int
    training_macs: int
    seconds: float
    mean: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)


def summarise(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a point, in the order of the study."""
    rows = []
    for point in dict.fromkeys(outcome.trial.point for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.trial.point == point]
        columns = {name: [one.figures[name] for one in mine] for name in mine[0].figures}
        rows.append(Row(
            point, len(mine), mine[0].trial.steps, mine[0].trial.macs, mine[0].trial.training_macs,
            fmean(one.seconds for one in mine), {name: fmean(values) for name, values in columns.items()},
            {name: stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()},
        ))  # fmt: skip
    return rows


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, with equal values sharing their mean rank; nan where all of one are equal."""
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (x, y)]
    deviations = [rank - rank.mean() for rank in ranks]
    size = math.sqrt(float((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum()) / size if size else math.nan


def _ranks(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
