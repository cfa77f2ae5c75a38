"""Saving a run and taking it up again: the same command on the same folder goes on, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mmdit import __version__, files
from mmdit.conditioning import load_text_encoder
from mmdit.config import dump_config, parse_config
from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.training import checkpoint as checkpoints
from mmdit.training.build import describe_process
from mmdit.training.config import RunConfig
from mmdit.training.run import Run

# Keys of a recipe that may differ between a run and its continuation; all others must be the same.
MAY_CHANGE = ("log_every", "checkpoint_every", "keep_checkpoints", "stop_after_bad_steps")


def check_same_recipe(config: RunConfig, folder: Path) -> None:
    """Refused where `folder` holds a run that was begun with another recipe; the key and both values are named."""
    path = folder / "config.yaml"
    if not path.is_file() or not checkpoints.list_checkpoints(folder):
        return
    old = parse_config(RunConfig, yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
    for key, was, now in _differences(old.model_dump(mode="json"), config.model_dump(mode="json")):
        if key not in MAY_CHANGE:
            raise Refused(
                "the recipe is not the one that this run was begun with",
                where=folder,
                got=f"{key}={now}",
                expected=f"{key}={was}",
                fix="set it back, or train into another folder",
            )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in old:
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield prefix + key, old[key], new[key]


def save(run: Run) -> None:
    """Writes the checkpoint of the current step, then lets the oldest go."""
    run.accelerator.wait_for_everyone()
    path = checkpoints.checkpoint_path(run.folder, run.step)
    if run.accelerator.is_main_process and not path.exists():
        with files.new_folder(path) as part:
            _write_weights(run, part)
            with run.ema.in_place_of_weights(run.trainee):
                _write_weights(run, part / "ema")
            files.write_safetensors(part / "optimizer.safetensors", checkpoints.optimizer_tensors(run.optimizers))
            files.write_json(part / "state.json", _state(run))
            checkpoints.write_manifest(part)
        checkpoints.keep_newest(run.folder, run.config.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def _write_weights(run: Run, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    run.trainee.transformer.save_pretrained(folder / "transformer")
    if run.trainee.text_encoder is not None:
        run.trainee.text_encoder.save(folder)


def _state(run: Run) -> dict[str, Any]:
    text = run.config.conditions.text
    return {
        "format": checkpoints.FORMAT,
        "mmdit": __version__,
        "step": run.step,
        "bad_steps": run.bad_steps,
        "window": run.window,
        "label_names": run.store.labels if run.config.conditions.labels else [],
        "text_encoder": None if text is None else text.encoder,
        **describe_process(run.process),
        "latent_shape": list(run.store.latent_shape),
        **_data_state(run),
    }


def _data_state(run: Run) -> dict[str, Any]:
    """What must be the same of the store for a run to go on."""
    return {"codec": run.store.meta["codec"], "clip": run.store.clip, "store_rows": len(run.store)}


def resume(run: Run) -> None:
    """Takes up the newest checkpoint, if there is one, and forgets log lines of steps that will be done again.

    Raises:
        Refused: the newest checkpoint is damaged, or the store is not the one that the run was begun with.
    """
    if run.accelerator.is_main_process:
        files.sweep(run.folder)
        files.sweep(run.folder / "checkpoints")
    run.accelerator.wait_for_everyone()
    if checkpoints.list_checkpoints(run.folder):
        path = checkpoints.find_checkpoint(run.folder)
        state = checkpoints.read_state(path)
        for name, now in _data_state(run).items():
            if state[name] != now:
                raise Refused(
                    f"the store is not the one that this run was begun with: {name} differs",
                    where=run.config.data.store,
                    got=now,
                    expected=state[name],
                    fix="train into another folder",
                )
        run.trainee.load_state_dict(_read_weights(path))
        run.ema.load(_read_weights(path / "ema"))
        checkpoints.load_optimizers(run.optimizers, path / "optimizer.safetensors")
        run.step, run.bad_steps = state["step"], state["bad_steps"]
        run.window = (state["window"][0], state["window"][1])
    if run.accelerator.is_main_process:
        files.write_text(run.folder / "config.yaml", dump_config(run.config))
        _cut_log(run.folder / "metrics.jsonl", run.step)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """State dict of a trainee from its folders."""
    weights = {f"transformer.{k}": v for k, v in DiT.from_pretrained(folder / "transformer").state_dict().items()}
    if (folder / "text_encoder").is_dir():
        encoder = load_text_encoder(folder, trainable=True)
        weights |= {f"text_encoder.{name}": value for name, value in encoder.state_dict().items()}
    return weights


def _cut_log(path: Path, step: int) -> None:
    if path.is_file():
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        files.write_text(path, "".join(line + "\n" for line in whole if json.loads(line)["step"] <= step))
