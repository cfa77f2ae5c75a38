"""`mmdit evaluate`: measures a model by a named protocol."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.evaluation.protocol import Protocol
    from mmdit.pipelines.loading import Source


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the protocol, as key=value.")] = None,
    store: Annotated[Path | None, typer.Option(help="The store of the real clips.")] = None,
    protocol: Annotated[str, typer.Option(help="A name, or a YAML file.")] = "fashion-small",
    given: Annotated[
        str | None, typer.Option(help="first, last or both: measure instead how given frames of real clips are held.")
    ] = None,
    force_given: Annotated[bool, typer.Option("--force-given", help="Even if it was not trained for these.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips at a time; the figures do not depend on it.")] = 16,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measures a model against the real clips of a store.

    Started by torchrun, its processes share the work; the figures are the same.

    Example:
      mmdit evaluate demo/run --store demo/store
      mmdit evaluate runs/mine --store demo/store --given first
    """
    from mmdit import files
    from mmdit.errors import Refused
    from mmdit.evaluation.given import PLACES
    from mmdit.evaluation.protocol import load_protocol
    from mmdit.latents.store import LatentStore
    from mmdit.pipelines.evaluating import Evaluation, evaluate_given, evaluate_samples
    from mmdit.pipelines.loading import WEIGHTS, call_facts, find_source, load_pipeline
    from mmdit.pipelines.process_group import process_group
    from mmdit.pipelines.request import PRECISIONS, check_choice
    from mmdit.tools.progress import progress_line

    found = find_source(source)
    rules = load_protocol(protocol, overrides or [])
    if store is None:
        raise Refused("nothing to compare with", expected="--store STORE")
    real = LatentStore.open(store)
    check_choice("weights", weights, WEIGHTS)
    check_choice("precision", precision, PRECISIONS)
    if given is not None:
        check_choice("kind of given frames", given, tuple(PLACES))
    _check(found, rules, given, force_given)
    with process_group(device) as group:
        pipeline = load_pipeline(found, weights=weights, codec=codec, device=group.device.replace("auto", "cpu"))
        pipeline.set_progress_bar_config(disable=True)
        if rules.sampler is not None:
            pipeline.use_sampler(rules.sampler)
        facts = call_facts(found, pipeline, rules.sampler)
        work = Evaluation(rules, pipeline, real, group, batch, precision)
        with progress_line("evaluate", "clips", quiet=as_json or not group.is_first) as advance:
            if given is None:
                figures = evaluate_samples(work, advance)
            else:
                figures = evaluate_given(work, given, advance, force=force_given)
        if not group.is_first:
            return
        result = {"protocol": {"name": protocol, **rules.model_dump()}, "model": facts, "given": given, **figures}
        if out is not None:
            files.write_json(out, result)
        print(json.dumps(result) if as_json else _table(result))


def _check(found: "Source", rules: "Protocol", given: str | None, force: bool) -> None:
    """Refused, before weights are loaded, for what the model cannot be measured by."""
    from mmdit.diffusion import RectifiedFlow, make_scheduler
    from mmdit.errors import Refused

    if rules.sampler is not None:
        make_scheduler(rules.sampler, found.process or RectifiedFlow())
    if given is not None and given not in found.given_frames and not force:
        raise Refused(
            "this model was not trained with such given frames", got=given,
            expected=" or ".join(found.given_frames) or "none",
            fix="train with conditions.given_frames, or insist with --force-given",
        )  # fmt: skip


def _table(result: dict[str, Any]) -> str:
    return "\n".join(_given_lines(result) if result["given"] else _sample_lines(result))


def _share(part: dict[str, Any]) -> str:
    low, high = part["interval"]
    return f"{part['share']:.1%} ({low:.1%} to {high:.1%})"


def _head(result: dict[str, Any]) -> str:
    rules = result["protocol"]
    return (
        f"protocol {rules['name']}: {rules['steps']} steps of {result['model']['sampler']}, "
        f"guidance {rules['guidance']:g}, seed {rules['seed']}"
    )


def _given_lines(result: dict[str, Any]) -> list[str]:
    figures, kind = result["figures"], {"first": "first frame", "last": "last frame", "both": "first and last frame"}
    psnr = figures["psnr"]
    lines = [
        _head(result),
        f"{kind[result['given']]} given, {figures['clips']} clips of split {result['protocol']['given_split']}",
        f"PSNR of what is given: {psnr['generated']:.2f} dB, the codec's own {psnr['codec']:.2f} dB; "
        f"{figures['within_1_db']:.1%} of the clips within 1 dB of it (goal: all)",
        f"{'kept through the clip':22} {'generated':>26} {'codec':>26} {'real':>26}",
    ]
    for name, shares in figures["kept"].items():
        columns = "".join(f" {_share(shares[whose]):>26}" for whose in ("generated", "codec", "original"))
        lines.append(f"{name:22}{columns}{'  (goal: 95 %)' if name == 'colour' else ''}")
    return lines


def _sample_lines(result: dict[str, Any]) -> list[str]:
    figures = result["figures"]
    lines = [_head(result), f"{'shows what was asked':22} {'generated':>26} {'real':>26}"]
    for name, shares in figures["attributes"].items():
        lines.append(f"{name:22} {_share(shares['generated']):>26} {_share(shares['real']):>26}")
    counts = figures["counts"]
    return [*lines, f"of {counts['generated']} generated and {counts['real']} real clips, with 95 % intervals"]


if __name__ == "__main__":
    run(main)
