"""A reproduction card for each recipe of configs/: what its header says, and what the planner makes of it.

A header is sentences on what the recipe trains, then fields: `# Name:` and a text, which goes on in indented lines.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.config import load_config
from mmdit.tools import cli

FIELDS = ("Source", "Data", "Command", "Plan", "Hardware", "Time", "Published", "Measured")
NOT_RUN = "not run"
FIELD = re.compile(r"^# ([A-Z][a-z]+): +", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """`fields`: of the header, a line each. `size`: 10^6 parameters, GMACs of a forward pass on a clip, batch, steps.
    `hours`, `devices`, `share`: of the run as planned, on so many, at this share of the device's peak; None without."""

    name: str
    about: str
    fields: dict[str, str]
    size: tuple[float, float, int, str]
    hours: float | None = None
    devices: str = ""
    count: int = 1
    share: float = 0.0


def read_header(path: Path) -> tuple[str, dict[str, str]]:
    """What a recipe trains, and the fields of its header."""
    lines = re.match(r"(?:#.*\n)*", path.read_text("utf-8"))
    about, *rest = FIELD.split(lines[0] if lines else "")
    return _joined(about), {name: _joined(text) for name, text in zip(rest[::2], rest[1::2], strict=True)}


def _joined(text: str) -> str:
    """One line of several, without the signs of comments and of commands that go on."""
    return " ".join(re.sub(r"\\\n|\n", " ", re.sub(r"^#", "", text, flags=re.MULTILINE)).split())


def make_card(path: Path) -> Card:
    """Of one recipe.

    Raises:
        LookupError: the header lacks a field, or a recipe that was not run has no device that it is planned for.
    """
    about, fields = read_header(path)
    if lacking := [name for name in ("about", *FIELDS) if not (about if name == "about" else fields.get(name))]:
        raise LookupError(f"the header of {path} lacks {', '.join(lacking)}")
    others = {"train-codec": _codec, "train-probe": _probe}
    verb = fields["Command"].split()[1]
    if verb in others:
        return Card(path.stem, about, fields, others[verb](path))
    planned = _plan(fields["Plan"])
    if fields["Time"] == NOT_RUN and planned[1] is None:
        raise LookupError(f"the header of {path} says neither what it took nor, after --gpu, what it is planned for")
    return Card(path.stem, about, fields, *planned)


def _plan(command: str) -> tuple[Any, ...]:
    """The size of a run, hours, device, their number and the share of its peak, by the words of `mmdit plan`."""
    from mmdit.tools import plan_training
    from mmdit.training.config import RunConfig
    from mmdit.training.devices import find_device
    from mmdit.training.plan import ASSUMED_SHARE, run_seconds, step_cost
    from mmdit.training.plan_data import data_as_told, step_inputs

    heard: dict[str, Any] = {}
    listen = functools.wraps(plan_training.main)(lambda **given: heard.update(given))
    cli.call(listen, "plan", command.split()[2:])
    config = load_config(RunConfig, heard["config"], heard["overrides"] or [])
    latent, text = (tuple(map(int, heard[name].split("x"))) if heard[name] else None for name in ("latent", "text"))
    data = data_as_told(config, latent, heard["labels"])  # type: ignore[arg-type]
    cost = step_cost(config, data, step_inputs(config, data, data.largest, text))  # type: ignore[arg-type]
    size = (cost.parameters / 1e6, cost.macs / cost.clips / 1e9, config.data.batch_size, f"{config.steps:,}")
    if heard["gpu"] is None:
        return size, None
    device, share = find_device(heard["gpu"]), heard["share"] or ASSUMED_SHARE
    if device is None:
        raise LookupError(f"unknown device in {command}")
    seconds = run_seconds(config, cost, heard["gpus"] * share * device.peak)
    return size, None if seconds is None else seconds / 3600, device.name, heard["gpus"], share


def _codec(path: Path) -> tuple[float, float, int, str]:
    """Of encoding and decoding a clip, by the network as it is in the end."""
    import torch
    from diffusers import AutoencoderKLLTXVideo

    from mmdit.training.codec_recipe import CodecRecipe, second_stage

    recipe = load_config(CodecRecipe, path)
    last = second_stage(recipe, str(path)) or recipe
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo(**last.vae)
        macs = _macs(lambda: vae(torch.zeros(1, 3, recipe.frames, *recipe.size)))
    steps = f"{recipe.steps:,}" + (f" + {last.steps:,}" if last is not recipe else "")
    return _millions(vae), macs / 1e9, recipe.batch_size, steps


def _probe(path: Path) -> tuple[float, float, int, str]:
    import torch

    from mmdit.evaluation.probe import Probe, load_probe
    from mmdit.evaluation.probe_training import ProbeRecipe

    recipe = load_config(ProbeRecipe, path)
    config = load_probe().config
    with torch.device("meta"):
        probe = Probe(config)
        macs = _macs(lambda: probe(torch.zeros(1, 3, recipe.frames, *recipe.size)))
    return _millions(probe), macs / 1e9, recipe.batch_size, f"{recipe.steps:,}"


def _macs(work: Any) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def _millions(network: Any) -> float:
    return sum(weight.numel() for weight in network.parameters()) / 1e6


def summary(cards: list[Card]) -> list[str]:
    """A row a recipe; of what was published and measured up to the first semicolon."""
    rows = ["| recipe | parameters, M | GMACs | batch | steps | published | measured | time of training |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for card in cards:
        parameters, macs, batch, steps = card.size
        short = {name: card.fields[name].split(";")[0] for name in ("Published", "Measured", "Time")}
        published = "none" if short["Published"].startswith("none") else short["Published"]
        time = (
            short["Time"] if card.hours is None else f"planned: {hours(card.hours * card.count)} of one {card.devices}"
        )
        rows.append(
            f"| [{card.name}](#{card.name}) | {parameters:.4g} | {macs:.4g} | {batch} | {steps} | {published} | "
            f"{short['Measured']} | {time} |"
        )
    return rows


def describe(card: Card) -> list[str]:
    """The card itself: a heading, what it trains, and a row for each thing to know."""
    parameters, macs, batch, steps = card.size
    fields = {name: _typed(text) for name, text in card.fields.items()}
    size = f"{parameters:.4g} M parameters, {macs:.4g} GMACs a forward pass on a clip, {steps} steps of {batch} clips"
    if card.hours is not None:
        devices = f"{card.count} {card.devices}" if card.count > 1 else f"one {card.devices}"
        fields["Time"] += (
            f"; planned: {hours(card.hours)} on {devices} at an assumed {card.share * 100:.0f} % of its peak"
        )
    rows = {name: text for name, text in fields.items() if not text.startswith("none: mmdit plan")} | {"Size": size}
    return ["", f"### {card.name}", "", card.about, "", "| | |", "|---|---|", *map(_row, rows.items())]


def _row(cells: tuple[str, str]) -> str:
    return f"| **{cells[0].lower()}** | {cells[1].replace('|', '/')} |"


def hours(value: float) -> str:
    return f"{value:.1f} hours" if value < 10 else f"{value:,.0f} hours"


def _typed(text: str) -> str:
    """Commands, as such."""
    return f"`{text}`" if text.startswith(("mmdit ", "torchrun ")) else text


def cards(folder: Path) -> str:
    """The whole: a summary, then each card."""
    made = [make_card(path) for path in sorted(folder.glob("*.yaml"))]
    return "\n".join([*summary(made), "", "## Cards", *(line for card in made for line in describe(card))])
