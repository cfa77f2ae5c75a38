"""`mmdit plan`: what `mmdit train` or `mmdit encode` would take, by whether a recipe or a source of clips is named."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmdit.tools.cli import Kinds, run


def overview() -> None:
    """Says what a command would take and does none of it: `mmdit train` for a recipe, `mmdit encode` for a source.

    RECIPE is a .yaml file or the name of a shipped one: memory, time and disk of training, and what the store lacks.
    Its options: mmdit plan RECIPE --help.

    SOURCE is a folder, table or archive of clips: what is kept and dropped, disk and time of encoding. Its options:
    mmdit plan SOURCE --help.

    Example:
      mmdit plan configs/dit_xl2_256.yaml --gpu h200 --gpus 8 --latent 4x1x32x32 --labels 1000
      mmdit plan my_videos --token-budget 1024 --windows all
    """
    from mmdit.errors import Refused

    raise Refused("nothing to plan", expected="a recipe or a source of clips", fix="see 'mmdit plan --help'")


def _pick(words: list[str], name: str) -> tuple[Callable[..., Any], list[str], str]:
    if not words or words[0] in ("-h", "--help"):
        return overview, words, name
    if any(_is_recipe(word) for before, word in pairwise(["", *words]) if before != "--recipe"):
        from mmdit.tools import plan_training

        return plan_training.main, words, name
    from mmdit.tools import plan_encoding

    return plan_encoding.main, words, name


def _is_recipe(word: str) -> bool:
    from mmdit.config import find_recipe
    from mmdit.errors import Refused

    if word.startswith("-") or "=" in word or Path(word).is_dir():
        return False
    try:
        return word.endswith((".yaml", ".yml")) or find_recipe(word).suffix == ".yaml" != Path(word).suffix
    except Refused:
        return False


main = Kinds(overview, _pick)

if __name__ == "__main__":
    run(main)
