"""`mmdit train-probe`: trains the network that scores generated clips, and measures whether it may be trusted."""

from pathlib import Path
from typing import Annotated

import typer


def main(
    recipe: Annotated[str, typer.Argument(help="A YAML recipe, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key.sub=value.")] = None,
    out: Annotated[Path, typer.Option(help="New folder for the weights, the config and the card.")] = Path("probe"),
) -> None:
    """Train the network that reads the attributes of the made clips.

    Makes the clips that the recipe names (those already made are kept), trains, and reads real clips it never saw. Ends
    with code 4, and writes nothing, when it reads fewer than 99 % of them right.

    Example:
      mmdit train-probe configs/probe_fashion.yaml --out probe_fashion
    """
    import time

    import torch

    from mmdit import files
    from mmdit.clips.made import make_clips
    from mmdit.config import load_config
    from mmdit.errors import Refused
    from mmdit.evaluation.probe import load_probe, save_probe
    from mmdit.evaluation.probe_training import ProbeRecipe, card, measure, read_made_clips, train_probe
    from mmdit.evaluation.score import check_probe
    from mmdit.tools.progress import progress_line

    settings = load_config(ProbeRecipe, recipe, overrides or ())
    if out.exists():
        raise Refused("the folder is there already", got=out, fix="name another with --out, or remove it")
    for part in (settings.train, settings.test):
        with progress_line("make clips", "clips") as advance:
            make_clips(
                part.folder,
                count=part.count,
                seed=part.seed,
                size=settings.size,
                frames=settings.frames,
                fps=settings.fps,
                workers=settings.threads,
                progress=lambda done, count, advance=advance: advance(done, count, ""),  # type: ignore[misc]
            )
    data, test = read_made_clips(settings, settings.train), read_made_clips(settings, settings.test)
    start, spent = time.monotonic(), time.process_time()
    with progress_line("train", "steps") as advance:
        probe = train_probe(data, settings, lambda step, loss: advance(step, settings.steps, f"loss {loss:.3f}"))
    facts = {
        "command": " ".join(["mmdit train-probe", recipe, *(overrides or ()), "--out", out.name]),
        "parameters": sum(value.numel() for value in probe.parameters()),
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - spent,
        "torch": torch.__version__,
    }
    with files.new_folder(out) as folder:
        save_probe(probe, folder)
        stored = load_probe(folder)  # what is measured is what is stored, rounded to float16
        check_probe(stored, test.clips, test.values)
        text = card(settings, measure(stored, test), facts)
        files.write_text(folder / "README.md", text)
    print(text)
    print(f"The probe is in {out}.")


if __name__ == "__main__":
    from mmdit.tools.cli import run

    run(main)
