"""Saving a run and taking it up again: the same command on the same folder goes on, bit for bit."""

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mmdit import __version__, files
from mmdit.conditioning import load_text_encoder
from mmdit.config import dump_config
from mmdit.errors import Refused, Stopped
from mmdit.models import DiT
from mmdit.training import checkpoint as checkpoints
from mmdit.training import lora
from mmdit.training.build import describe_process
from mmdit.training.init_from import init_from
from mmdit.training.retention import check_retention, remove_old
from mmdit.training.run import Run
from mmdit.training.run_data import check_data, data_state

log = logging.getLogger("mmdit.training")

DAMAGED = "damaged-"  # before the name of a checkpoint that --fallback passed over


def save(run: Run) -> None:
    """Writes the checkpoint of the current step, then lets the old ones go that the recipe does not keep.

    Raises:
        Stopped: it cannot be written; the checkpoints before it are whole.
    """
    run.accelerator.wait_for_everyone()
    path = checkpoints.checkpoint_path(run.folder, run.step)
    if run.accelerator.is_main_process and not path.exists():
        try:
            with files.new_folder(path) as part:
                _write_weights(run, part)
                for number, name in enumerate(_average_folders(run)):
                    with run.ema.in_place_of_weights(run.trainee, number):
                        _write_weights(run, part / name)
                files.write_safetensors(part / "optimizer.safetensors", checkpoints.optimizer_tensors(run.optimizers))
                files.write_json(part / "state.json", _state(run))
                checkpoints.write_manifest(part)
            remove_old(run.folder, run.config)
        except (OSError, SafetensorError) as error:
            raise _not_written(run, error) from error
    run.accelerator.wait_for_everyone()


def _average_folders(run: Run) -> list[str]:
    """ "ema" for the first decay, "ema_DECAY" for each further one."""
    return ["ema", *(f"ema_{decay}" for decay in run.ema.decays[1:])]


def _not_written(run: Run, error: Exception) -> Stopped:
    """SafetensorError has no number of its own: its text does."""
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
    found = checkpoints.list_checkpoints(run.folder)
    return Stopped(
        "the disk is full" if full else "the checkpoint cannot be written",
        where=run.folder,
        got=f"step {run.step} not saved" if full else f"step {run.step} not saved: {error}",
        fix=f"make room; the same command goes on from step {checkpoints.step_of(found[-1]) if found else 0}",
    )


def _write_weights(run: Run, folder: Path) -> None:
    if run.config.lora is not None:
        lora.write_weights(run.trainee, folder, base=not folder.name.startswith("ema"))
        return
    folder.mkdir(exist_ok=True)
    run.trainee.transformer.save_pretrained(folder / "transformer")
    if run.trainee.text_encoder is not None:
        run.trainee.text_encoder.save(folder)


def _state(run: Run) -> dict[str, Any]:
    return {
        "format": checkpoints.FORMAT,
        "mmdit": __version__,
        "step": run.step,
        "bad_steps": run.bad_steps,
        "skipped": run.skipped,
        "scaler": run.scaler.state_dict(),
        "window": run.window,
        **describe_process(run.process),
        "latent_shape": list(run.pool.latent),
        **run.data,
    }


def resume(run: Run, *, fallback: bool = False, accept_data: bool = False) -> None:
    """Takes up the newest checkpoint, or begins from `init_from`; forgets log lines of steps that will be done again.

    Args:
        fallback: when the newest checkpoint is damaged, take the newest one that is not, and set the others aside.
        accept_data: go on although the store's rows have changed.

    Raises:
        Refused: the newest checkpoint is damaged, the data are not those that the run was begun with, or there is no
            room for a checkpoint.
    """
    check_retention(run.config)
    if run.accelerator.is_main_process:
        for folder in (run.folder, run.folder / "checkpoints", run.folder / "rows"):
            files.sweep(folder)
    run.accelerator.wait_for_everyone()
    run.data = data_state(run)
    if checkpoints.list_checkpoints(run.folder):
        path = checkpoints.find_checkpoint(run.folder, fallback=fallback)
        _take_up(run, path, accept_data)
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            _set_aside_after(run.folder, path)
            remove_old(run.folder, run.config)  # a crash may have come between saving and this
    elif run.config.init_from is not None:
        report = init_from(run.trainee, run.config, run.sources.labels, run.text_fingerprint)
        for number in range(len(run.ema.decays)):
            run.ema.load(run.trainee.state_dict(), number)
        if run.accelerator.is_main_process:
            log.warning("%s", report.text())
            files.write_json(run.folder / "init.json", vars(report))
    if run.accelerator.is_main_process:
        _check_room(run)
        files.write_text(run.folder / "config.yaml", dump_config(run.config))
        _cut_log(run.folder / "metrics.jsonl", run.step)


def _take_up(run: Run, path: Path, accept_data: bool) -> None:
    state = checkpoints.read_state(path)
    check_data(run, state, accept=accept_data)
    weights = _read_weights(run, path)
    _check_vocabulary(run, path)
    run.trainee.load_state_dict(weights)
    for number, name in enumerate(_average_folders(run)):
        run.ema.load(_read_weights(run, path / name), number)
    checkpoints.load_optimizers(run.optimizers, path / "optimizer.safetensors")
    run.step, run.bad_steps = state["step"], state["bad_steps"]
    run.skipped = state.get("skipped", 0)
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.window = (state["window"][0], state["window"][1])


def _check_vocabulary(run: Run, path: Path) -> None:
    """The embedded encoder's words come from the captions: other captions may number them anew."""
    if run.trainee.text_encoder is not None:
        was = load_text_encoder(lora.base_folder(path)).tokenizer.get_vocab()
        if was != (now := run.trainee.text_encoder.tokenizer.get_vocab()):
            new = ", ".join(sorted(now.keys() - was.keys())[:5]) or "none"
            raise Refused(
                "the captions make another vocabulary than that of the embedded text encoder", where=path,
                got=f"{len(now)} words, new: {new}", expected=f"the {len(was)} words it was begun with",
                fix="train into another folder, from these weights with init_from",
            )  # fmt: skip


def _set_aside_after(run_folder: Path, taken: Path) -> None:
    """The steps after the checkpoint taken up will be done and saved again."""
    for path in checkpoints.list_checkpoints(run_folder):
        if checkpoints.step_of(path) > checkpoints.step_of(taken):
            aside = path.with_name(DAMAGED + path.name)
            if aside.exists():
                files.remove_folder(aside)
            path.rename(aside)
            log.warning("damaged, and set aside as %s", aside)


def _check_room(run: Run) -> None:
    """Refused where the disk has no room for the checkpoints that the run will hold at one time."""
    if run.step == run.config.steps:
        return
    copies = [(weight, 4 if weight.requires_grad else 1) for weight in run.trainee.parameters()]  # EMA, two moments
    one = sum(count * weight.numel() * weight.element_size() for weight, count in copies)
    count = max(1, run.config.keep_checkpoints + 1 - len(checkpoints.list_checkpoints(run.folder)))
    free = shutil.disk_usage(run.folder).free
    if free < one * count:
        raise Refused(
            "not enough room on the disk", where=run.folder, got=f"{free / 1e6:.1f} MB free",
            expected=f"{one * count / 1e6:.1f} MB: {count} checkpoints of up to {one / 1e6:.1f} MB",
            fix="make room, or keep fewer with keep_checkpoints",
        )  # fmt: skip


def _read_weights(run: Run, folder: Path) -> dict[str, Tensor]:
    """State dict of a trainee from its folders."""
    if run.config.lora is not None:
        return lora.read_weights(run.trainee, folder)
    weights = {
        f"transformer.{k}": v
        for k, v in DiT.from_pretrained(folder / "transformer", use_safetensors=True).state_dict().items()
    }
    if (folder / "text_encoder").is_dir():
        encoder = load_text_encoder(folder, trainable=True)
        weights |= {f"text_encoder.{name}": value for name, value in encoder.state_dict().items()}
    return weights


def _cut_log(path: Path, step: int) -> None:
    if path.is_file():
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        files.write_text(path, "".join(line + "\n" for line in whole if json.loads(line)["step"] <= step))
