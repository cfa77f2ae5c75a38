"""`mmdit evaluate`: measures a model, or a folder of clips, by a named protocol."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.evaluation.protocol import Protocol
    from mmdit.latents.store import LatentStore
    from mmdit.pipelines.clip_pipeline import ClipPipeline
    from mmdit.pipelines.evaluation_plan import Plan


def main(
    source: Annotated[Path, typer.Argument(help="A run, a checkpoint, a pipeline folder, or a folder of clips.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the protocol, as key=value.")] = None,
    store: Annotated[
        str | None, typer.Option(help="The store of the real clips: a folder, or a URL that fsspec knows.")
    ] = None,
    clips: Annotated[Path | None, typer.Option(help="Or the folder of the real clips.")] = None,
    protocol: Annotated[str, typer.Option(help="A name, or a YAML file.")] = "fashion-small",
    network: Annotated[
        list[str] | None, typer.Option(help="Weights of a feature network: i3d=FILE, inception=FILE, clip=FOLDER, ...")
    ] = None,
    given: Annotated[
        str | None, typer.Option(help="first, last or both: measure instead how given frames of real clips are held.")
    ] = None,
    force_given: Annotated[bool, typer.Option("--force-given", help="Even if it was not trained for these.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what is measured of real clips. [default: the user's cache]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips sampled at a time, at most 32.")] = 16,
    precision: Annotated[str, typer.Option(help="Of sampling: float32, or bfloat16.")] = "float32",
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    fallback: Annotated[bool, typer.Option("--fallback", help="Pass over a damaged newest checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measures a model's samples, or clips that there are, beside real clips: Fréchet distance and KID with their
    sample counts, precision and recall, attributes, flicker, drift, and what the codec loses.

    A protocol says everything that the figures depend on beside the model and the clips. Started by torchrun, its
    processes share the work; the figures are the same. Stopped, the same command goes on.

    Example:
      mmdit evaluate demo/run --store demo/store
      mmdit evaluate runs/mine --store demo/store --given first
      mmdit evaluate made --clips real --protocol fvd-16f-2048 --network i3d=i3d_torchscript.pt
    """
    import torch

    from mmdit import files
    from mmdit.evaluation.columns import ColumnCache, cache_folder
    from mmdit.evaluation.given import PLACES
    from mmdit.evaluation.protocol import load_protocol
    from mmdit.pipelines.evaluating import Work, evaluate, evaluation_facts
    from mmdit.pipelines.evaluation_plan import plan_given, plan_samples
    from mmdit.pipelines.loading import WEIGHTS
    from mmdit.pipelines.process_group import process_group
    from mmdit.pipelines.request import PRECISIONS, check_choice
    from mmdit.pipelines.sampled_clips import How
    from mmdit.tools.clip_options import device_of
    from mmdit.tools.evaluation_table import table
    from mmdit.tools.progress import progress_line

    # Everything that can be refused without a model is refused before one is loaded.
    rules = load_protocol(protocol, overrides or [])
    check_choice("weights", weights, WEIGHTS)
    check_choice("precision", precision, PRECISIONS)
    if out is not None:
        _check_out(out)
    real = _against(store, clips)
    if given is None:
        plan = plan_samples(source, real, rules, _networks(network or []), fallback=fallback)
    else:
        check_choice("kind of given frames", given, tuple(PLACES))
        plan = plan_given(source, real, rules, given, force=force_given, fallback=fallback)
    try:
        with process_group(device) as group:
            place = device_of(group.device)
            pipeline, model = _load(plan, rules, weights, codec, place)
            with progress_line("evaluate", "parts", quiet=as_json or not group.is_first) as advance:
                work = Work(rules, group, ColumnCache(cache or cache_folder()), advance, plan.networks,
                            torch.device(place))  # fmt: skip
                how = How(rules.seed, rules.steps, rules.guidance, precision, batch)
                figures = evaluate(work, plan, pipeline, how, given, force_given)
            if not group.is_first:
                return
            named = {"name": protocol, **rules.model_dump(mode="json")}
            result = {"protocol": named, "given": given, "figures": figures, **evaluation_facts(plan, work, precision)}
            result["model"] = model
    finally:
        plan.close()
    print(json.dumps(result) if as_json else "\n".join(table(result)), flush=True)
    if out is not None:
        files.write_json(out, result)
    work.cache.drop_parts()


def _check_out(out: Path) -> None:
    """Refused for what no result can be written to."""
    from mmdit.errors import Refused
    from mmdit.pipelines.output import check_writable

    if out.suffix.lower() != ".json" or out.is_dir():
        raise Refused("not a JSON file", where="--out", got=out, expected="a name that ends in .json")
    check_writable(out)


def _against(store: str | None, clips: Path | None) -> "LatentStore | Path":
    """What is compared with."""
    from mmdit.errors import Refused
    from mmdit.latents.store import LatentStore

    if (store is None) == (clips is None):
        got = "neither" if store is None else "both"
        raise Refused("what to compare with", got=got, expected="--store STORE or --clips FOLDER")
    if store is not None:
        return LatentStore.open(store)
    if clips is None or not clips.is_dir():
        raise Refused("no such folder of clips", where=clips)
    return clips


def _networks(words: list[str]) -> dict[str, Path]:
    """Names and paths of NAME=PATH."""
    from mmdit.errors import Refused

    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise Refused("not the weights of a feature network", got=repr(word), expected="NAME=PATH")
        found[name] = Path(path)
    return found


def _load(
    plan: "Plan", rules: "Protocol", weights: str, codec: str | None, device: str
) -> tuple["ClipPipeline | None", dict[str, Any] | None]:
    """The pipeline, and where its weights come from; nothing for a folder of clips."""
    from mmdit.pipelines.loading import call_facts, load_pipeline

    if plan.model is None:
        return None, None
    pipeline = load_pipeline(plan.model, weights=weights, codec=codec, device=device)
    pipeline.set_progress_bar_config(disable=True)
    if rules.sampler is not None:
        pipeline.use_sampler(rules.sampler)
    return pipeline, call_facts(plan.model, pipeline, rules.sampler)


if __name__ == "__main__":
    run(main)
