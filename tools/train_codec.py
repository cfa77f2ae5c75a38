"""`mmdit train-codec`: trains a small video codec from a recipe, and measures it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def main(
    config: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe, as key.sub=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/ and the recipe's name.")] = None,
    codec: Annotated[Path | None, typer.Option(help="Codec folder; by default codec/ in the run folder.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with all its defaults, and end.")] = False,
) -> None:
    """Trains a video codec from a recipe, or goes on with a run that was stopped: the same command again.

    The clips it learns from come first: mmdit make-clips codec_clips --count 4000 --seed 1

    Example: mmdit train-codec configs/codec_fashion.yaml clips=codec_clips --out runs/codec_fashion
    """
    import json

    from mmdit import files
    from mmdit.config import dump_config, load_config
    from mmdit.training.codec_recipe import CodecRecipe

    recipe = load_config(CodecRecipe, config, overrides or [])
    if show:
        print(dump_config(recipe), end="")
        return
    from mmdit.latents.codec import load_codec
    from mmdit.tools.progress import progress_line
    from mmdit.training.codec import train_codec
    from mmdit.training.codec_card import codec_card

    folder = out or Path("runs") / Path(config).stem
    target = codec or folder / "codec"
    with progress_line("train-codec", "steps") as advance:
        figures = train_codec(recipe, folder, codec_folder=target, progress=advance)
    name = Path(config).stem
    command = " ".join(["mmdit train-codec", config, *(overrides or [])])
    files.write_text(target / "README.md", codec_card(recipe, load_codec(target), figures, name=name, command=command))
    print(json.dumps(figures, indent=2))
    print(f"the codec is in {target}")
    print(f"next: mmdit encode FOLDER --codec {shlex.quote(str(target))} --out STORE")


if __name__ == "__main__":
    from mmdit.tools.cli import run

    run(main)
