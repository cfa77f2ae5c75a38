"""`mmdit export`: a trained run as a pipeline folder with a model card, and onto the hub."""

from pathlib import Path
from typing import Annotated

import typer

from mmdit.tools.cli import run


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    dtype: Annotated[
        str, typer.Option(help="Of the network's and the text encoder's weights: float32, or bfloat16.")
    ] = "float32",
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, as the hub writes it: apache-2.0, cc-by-nc-4.0, other, ...")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(help="A prompt (or label) to show a clip of; any number. [default: the run's latest samples]"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME of a repository of the hub; a new one is private.")
    ] = None,
    fallback: Annotated[bool, typer.Option("--fallback", help="Pass over a damaged newest checkpoint.")] = False,
) -> None:
    """Writes a run as a pipeline folder: all weights (a LoRA merged), and a model card.

    It loads by mmdit.pipelines.ClipPipeline.from_pretrained(OUT), and where mmdit is installed by diffusers'
    DiffusionPipeline.from_pretrained(OUT, custom_pipeline=OUT, trust_remote_code=True).

    Example:
      mmdit export runs/mine coats --dtype bfloat16
      mmdit export runs/mine coats --licence apache-2.0 --example "a red coat" --push me/coats
    """
    from mmdit.errors import Refused
    from mmdit.pipelines import export
    from mmdit.pipelines.loading import WEIGHTS, find_source, load_pipeline
    from mmdit.pipelines.output import check_writable
    from mmdit.pipelines.request import check_choice

    check_choice("dtype", dtype, list(export.DTYPES))
    check_choice("weights", weights, WEIGHTS)
    if out.exists():
        raise Refused("the output is there already", where=out, fix="name a new folder")
    check_writable(out)
    if push is not None:
        export.check_push(push)
    found = find_source(source, fallback=fallback)
    card = export.Card(push or out.name, licence, tuple(example or ()))
    export.check_card(card, found)
    export.write_folder(load_pipeline(found, weights=weights, codec=codec), found, out, dtype, card)
    print(f"exported: {out}" + ("" if licence else f" (fill in the licence in {out / export.CARD})"))
    if push is not None:
        print(f"pushed: {export.push(out, push)}")


if __name__ == "__main__":
    run(main)
