"""`mmdit bench`: how fast this machine does the work, each figure beside what it is to be compared with."""

import importlib
from collections.abc import Callable
from typing import Any

from mmdit.tools.cli import Kinds, run

KINDS = ("encode", "train", "load", "memory", "sample", "growth", "compare", "model", "gpu")


def overview() -> None:
    """Measures this machine: encode, train, load, ... Their options: mmdit bench train --help.

    \b
    encode  from video files to a latent store, beside the codec alone and a plain loop
    train   what of a training step is not forward, backward or optimizer step
    load    how much faster batches are read than a training step takes them
    memory  the memory that `mmdit plan` says a step takes, beside what it took
    sample  ways to sample faster, each with what it costs in quality
    model   whole training steps from latents, beside what else one would train with
    growth  time and memory over tokens, frames, clips and blocks, beside what is predicted
    gpu     all that there is to know of one GPU: attention, training steps, memory, FSDP2, sampling
    compare an earlier result, measured again in its commit and in this one, in turns

    Example:
      mmdit bench encode --clips 256 --source-size 128x96
      mmdit bench train demo_fashion data.store=my_store
      mmdit bench sample demo/run
    """
    from mmdit.errors import Refused

    raise Refused("nothing to measure", expected=f"one of {', '.join(KINDS)}", fix="see 'mmdit bench --help'")


def _pick(words: list[str], name: str) -> tuple[Callable[..., Any], list[str], str]:
    from mmdit.errors import Refused

    if not words or words[0].startswith("-"):
        return overview, words, name
    kind, rest = words[0], words[1:]
    if kind not in KINDS:
        raise Refused("no such benchmark", got=repr(kind), expected=f"one of {', '.join(KINDS)}")
    if kind in ("encode", "sample", "growth", "compare", "model", "gpu"):
        return importlib.import_module(f"mmdit.tools.bench_{kind}").main, rest, f"{name} {kind}"
    from mmdit.tools import bench_training

    return getattr(bench_training, kind), rest, f"{name} {kind}"


main = Kinds(overview, _pick)

if __name__ == "__main__":
    run(main)
