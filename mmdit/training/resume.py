"""Saving a run and taking it up again: the same command on the same folder goes on, bit for bit."""

import errno
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mmdit import __version__, files
from mmdit.conditioning import load_text_encoder
from mmdit.config import dump_config
from mmdit.errors import Refused, Stopped
from mmdit.models import read_network
from mmdit.training import checkpoint as checkpoints
from mmdit.training import lora
from mmdit.training.build import describe_process
from mmdit.training.init_from import init_from
from mmdit.training.processes import on_any
from mmdit.training.retention import check_retention, remove_old
from mmdit.training.room import check_room
from mmdit.training.run import Run
from mmdit.training.run_data import check_data, data_state
from mmdit.training.sharding import load_weights, local, whole
from mmdit.training.shards import Groups, Places, offsets, read_whole, write_together
from mmdit.training.trainee import Trainee, with_weights

log = logging.getLogger("mmdit.training")

DAMAGED = "damaged-"  # before the name of a checkpoint that --fallback passed over


def save(run: Run) -> None:
    """Copies what the checkpoint of the current step holds, and begins to write it while training goes on.

    Once it is whole and verifies, the old ones go that the recipe does not keep. `finish_save` waits for it, as the
    next `save` does.

    Raises:
        Stopped: the one before could not be written; those before it are whole.
    """
    finish_save(run)
    path = checkpoints.checkpoint_path(run.folder, run.step)
    sharded = run.writers is not None
    if on_any(run.accelerator, path.exists()) or not (sharded or run.accelerator.is_main_process):
        return
    groups = _tensors(run)
    weights, places = groups["weights"], {}
    if sharded:  # an average begins where its weight does
        places = {
            group: {name: offsets(weights.get(name, value)) for name, value in tensors.items()}
            for group, tensors in groups.items()
        }
    flat = {f"{group}/{name}": local(value) for group, tensors in groups.items() for name, value in tensors.items()}
    copies = run.writer.copy(flat)
    copied = {group: {name: copies[f"{group}/{name}"] for name in tensors} for group, tensors in groups.items()}
    run.writer.start(partial(_write, run, path, copied, places, _state(run)))


def finish_save(run: Run) -> None:
    """Until the checkpoint under way is whole on the disk, for all processes; Stopped where it could not be written."""
    failure = run.writer.wait()
    failed = on_any(run.accelerator, failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise _not_written(run.folder, run.step, "another process, which says why")


def _tensors(run: Run) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds: weights, each average, optimizer state."""
    averages = dict(zip(_average_folders(run), run.ema.all_averages, strict=True))
    return {
        "weights": run.trainee.state_dict(), **averages, "optimizer": checkpoints.optimizer_tensors(run.optimizers),
    }  # fmt: skip


def _write(run: Run, path: Path, groups: Groups, places: Places, state: dict[str, Any]) -> None:
    """In the thread of the writer: of the run, only what stays as it is may be read."""
    shards = path.with_name(f"{files.PART}shards-{path.name}")
    try:
        if run.writers is not None:
            write_together(shards, groups, places, run.writers)
        if run.accelerator.is_main_process:
            with files.new_folder(path) as part:
                _write_groups(run, part, groups, shards if run.writers is not None else None)
                files.write_json(part / "state.json", state)
                checkpoints.write_manifest(part)
            remove_old(run.folder, run.config)
    except Refused as error:  # what was just written is damaged: nothing old was removed
        raise Stopped(f"the checkpoint of step {state['step']} is not whole: {error}") from error
    except (OSError, SafetensorError) as error:
        raise _not_written(run.folder, state["step"], error) from error
    finally:
        if run.accelerator.is_main_process:
            shutil.rmtree(shards, ignore_errors=True)


def _write_groups(run: Run, part: Path, groups: Groups, shards: Path | None) -> None:
    """Portable folders of whole weights, one after the other, and the optimizers' state as it is held."""
    trainee = run.shell
    for group in ("weights", *_average_folders(run)):
        tensors = groups[group] if shards is None else read_whole(shards / group)
        trainee = with_weights(trainee, tensors)  # an average is of what is trained, and the rest as it was
        _write_weights(run, trainee, part if group == "weights" else part / group)
    if shards is None:
        files.write_safetensors(part / "optimizer.safetensors", dict(groups["optimizer"]))
    else:
        (shards / "optimizer").rename(part / "optimizer")


def _average_folders(run: Run) -> list[str]:
    """ "ema" for the first decay, "ema_DECAY" for each further one."""
    return ["ema", *(f"ema_{decay}" for decay in run.ema.decays[1:])]


def _not_written(folder: Path, step: int, error: object) -> Stopped:
    """SafetensorError has no number of its own: its text does."""
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
    found = checkpoints.list_checkpoints(folder)
    return Stopped(
        "the disk is full" if full else "the checkpoint cannot be written",
        where=folder,
        got=f"step {step} not saved" if full else f"step {step} not saved: {error}",
        fix=f"make room; the same command goes on from step {checkpoints.step_of(found[-1]) if found else 0}",
    )


def _write_weights(run: Run, trainee: Trainee, folder: Path) -> None:
    if run.config.lora is not None:
        lora.write_weights(trainee, folder, base=not folder.name.startswith("ema"))
        return
    folder.mkdir(exist_ok=True)
    trainee.transformer.save_pretrained(folder / "transformer")
    if trainee.text_encoder is not None:
        trainee.text_encoder.save(folder)


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
    check_retention(run)
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
        begun = with_weights(run.shell, {name: whole(value).cpu() for name, value in run.trainee.state_dict().items()})
        report = init_from(begun, run.config, run.sources.labels, run.text_fingerprint)
        load_weights(run.trainee, begun.state_dict())
        for number in range(len(run.ema.decays)):
            run.ema.load(run.trainee.state_dict(), number)
        if run.accelerator.is_main_process:
            log.warning("%s", report.text())
            files.write_json(run.folder / "init.json", vars(report))
    if run.accelerator.is_main_process:
        check_room(run)
        files.write_text(run.folder / "config.yaml", dump_config(run.config))
        _cut_log(run.folder / "metrics.jsonl", run.step)


def _take_up(run: Run, path: Path, accept_data: bool) -> None:
    state = checkpoints.read_state(path)
    check_data(run, state, accept=accept_data)
    weights = _read_weights(run, path)
    _check_vocabulary(run, path)
    for number, name in enumerate(_average_folders(run)):
        load_weights(run.trainee, {**weights, **_read_weights(run, path / name)})  # of a LoRA, the adapters alone
        run.ema.load(run.trainee.state_dict(), number)
    load_weights(run.trainee, weights)
    checkpoints.load_optimizers(run.optimizers, path)
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


def _read_weights(run: Run, folder: Path) -> dict[str, Tensor]:
    """State dict of a trainee from its folders."""
    if run.config.lora is not None:
        return lora.read_weights(run.trainee, folder)
    weights = {f"transformer.{k}": v for k, v in read_network(folder / "transformer").state_dict().items()}
    if (folder / "text_encoder").is_dir():
        encoder = load_text_encoder(folder, trainable=True)
        weights |= {f"text_encoder.{name}": value for name, value in encoder.state_dict().items()}
    return weights


def _cut_log(path: Path, step: int) -> None:
    if path.is_file():
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        files.write_text(path, "".join(line + "\n" for line in whole if json.loads(line)["step"] <= step))
