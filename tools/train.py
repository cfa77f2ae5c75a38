"""`mmdit train`: trains a network from a recipe."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mmdit.tools.cli import run


def main(
    config: Annotated[str | None, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe, as key.sub=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/ and the recipe's name.")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="When the newest checkpoint is damaged, go on from the one before.")
    ] = False,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Go on although the store's clips or captions have changed.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with all its defaults, and end.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
) -> None:
    """Trains a network from a recipe, or goes on with a run that was stopped: the same command again.

    Several processes train one network when torchrun or accelerate launch starts them, on the same global batches.

    Example:
      mmdit train configs/demo_fashion.yaml data.store=my_store --out runs/mine
      torchrun --nproc-per-node 8 tools/train.py configs/demo_fashion.yaml data.store=my_store --out runs/mine
    """
    import json

    from mmdit.config import dump_config, load_config, recipe_schema
    from mmdit.errors import Refused
    from mmdit.training.config import RunConfig

    if schema:
        print(json.dumps(recipe_schema(RunConfig), indent=2))
        return
    if config is None:
        raise Refused("no recipe", expected="a YAML file or the name of a shipped recipe", fix="see mmdit train --help")
    recipe = load_config(RunConfig, config, overrides or [])
    if show:
        print(dump_config(recipe), end="")
        return
    from mmdit.pipelines.training_samples import prepare_samples
    from mmdit.report.run import write_report
    from mmdit.tools.progress import progress_line
    from mmdit.training.loop import train

    folder = out or Path("runs") / Path(config).stem
    main_one = os.environ.get("RANK", "0") == "0"
    with progress_line("train", "steps", quiet=not main_one) as advance:
        checkpoint = train(
            recipe,
            folder,
            sample=prepare_samples,
            fallback=fallback,
            accept_data=accept_data,
            report=write_report,
            progress=lambda step, steps, now: advance(
                step, steps, f"loss {now['loss']:.3f}, {now['clips_per_s']:.0f} clips/s"
            ),
        )
    if not main_one:
        return
    print(f"trained: {checkpoint}")
    print(f"report: {folder / 'report.html'}")
    print(f'next: mmdit generate {shlex.quote(str(folder))} --prompt "..." --out clip.mp4')


if __name__ == "__main__":
    run(main)
