"""Training, read from top to bottom. The same command on the same folder goes on where it stopped, bit for bit."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mmdit import files
from mmdit.errors import Stopped
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.config import RunConfig
from mmdit.training.data import Batch
from mmdit.training.optimizer import learning_rate_scale, set_learning_rate
from mmdit.training.resume import check_same_recipe, resume, save
from mmdit.training.run import Run, begin_run

# Called after each step with (steps done, steps in all, {"loss": ..., "clips_per_s": ...}).
Progress = Callable[[int, int, dict[str, float]], None]


def train(config: RunConfig, folder: Path, *, progress: Progress | None = None) -> Path:
    """Trains until `config.steps`, or goes on from the newest checkpoint in `folder`; returns the last checkpoint.

    Raises:
        Refused: the store or the folder does not fit the recipe; found before any step.
        Stopped: asked to stop (SIGTERM), or no finite loss for a while; the last checkpoint is whole.
    """
    with files.lock(folder), _until_sigterm() as stop_wanted:
        check_same_recipe(config, folder)
        run = begin_run(config, folder)
        resume(run)
        share = config.data.batch_size // run.accelerator.num_processes
        slots = range(share * run.accelerator.process_index, share * (run.accelerator.process_index + 1))
        started, first = time.monotonic(), run.step
        while run.step < config.steps:
            # ---------------------------------------------------------------- one step
            set_learning_rate(run.optimizers, learning_rate_scale(config.optimizer, run.step, config.steps))
            batch = run.splits["train"].batch(run.step, slots).to(run.accelerator.device)
            loss = _losses(run, run.module, batch, "train").mean()
            run.accelerator.backward(loss)
            norm = _clip(run)
            loss = run.accelerator.reduce(loss.detach(), reduction="mean")
            if _is_finite(run, loss, norm, batch):
                for optimizer in run.optimizers:
                    optimizer.step()
                run.ema.update(run.trainee, run.step + 1)
            for optimizer in run.optimizers:
                optimizer.zero_grad(set_to_none=True)
            run.step += 1
            # ---------------------------------------------------------------- what is said and kept of it
            seconds = time.monotonic() - started
            _log(run, loss, norm, seconds)
            if progress is not None and run.accelerator.is_main_process:
                speed = (run.step - first) * config.data.batch_size / seconds
                progress(run.step, config.steps, {"loss": loss.item(), "clips_per_s": speed})
            if run.step % config.checkpoint_every == 0 or run.step == config.steps or stop_wanted():
                save(run)
            if stop_wanted() and run.step < config.steps:
                raise Stopped(
                    "training was asked to stop",
                    where=folder,
                    got=f"step {run.step} of {config.steps}, saved",
                    fix="the same command goes on from here",
                )
    return find_checkpoint(folder)


def _losses(run: Run, module: nn.Module, batch: Batch, split: str) -> Tensor:
    """The loss of each sample, (batch,)."""
    captions = None
    if batch.captions is not None:
        captions = tuple(part.to(batch.captions.device)[batch.captions] for part in run.captions[split])

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        with run.accelerator.autocast():
            return module(x_t, timesteps, batch.labels, captions)

    return run.process.loss(predict, batch.latents, batch.noise, batch.times).per_sample


def _clip(run: Run) -> Tensor:
    """The gradient's norm before it is clipped in place."""
    weights = [weight for weight in run.trainee.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    limit = run.config.optimizer.clip_norm
    if limit is not None and bool(norm.isfinite()):  # clipping by a NaN would spread it to every weight
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return norm


def _is_finite(run: Run, loss: Tensor, norm: Tensor, batch: Batch) -> bool:
    """Loss and norm are the same on every process: all decide alike. Too many bad steps in a row stop the run."""
    if math.isfinite(loss.item()) and math.isfinite(norm.item()):
        run.bad_steps = 0
        return True
    run.bad_steps += 1
    if run.bad_steps >= run.config.stop_after_bad_steps:
        clips = [run.store.row(row)["id"] for row in batch.rows[:8]]
        raise Stopped(
            "no finite loss or gradient",
            where=f"{run.folder}, step {run.step}",
            got=f"{run.bad_steps} such steps in a row, the last on clips {', '.join(clips)} ...",
            fix="lower the learning rate, look at these clips, or set precision=float32",
        )
    return False


def _log(run: Run, loss: Tensor, norm: Tensor, seconds: float) -> None:
    """Adds a line to metrics.jsonl where one is due."""
    run.window = run.window[0] + loss.item(), run.window[1] + 1
    validate = run.step % run.config.validate_every == 0 or run.step == run.config.steps
    if run.step % run.config.log_every and not validate:
        return
    line = {
        "step": run.step,
        "loss": run.window[0] / run.window[1],
        "grad_norm": norm.item(),
        "lr": run.optimizers[0].param_groups[0]["lr"],
        "seconds": round(seconds, 3),
    }
    if validate and "validation" in run.splits:
        line["val_loss"] = _held_out_loss(run)
    run.window = 0.0, 0
    if run.accelerator.is_main_process:
        files.append_line(run.folder / "metrics.jsonl", json.dumps(line))


@torch.no_grad()
def _held_out_loss(run: Run) -> float:
    """Loss of the averaged weights on the validation split, at the same noise and times each time it is measured."""
    data = run.splits["validation"]
    size, count = run.config.data.batch_size, min(run.config.validation_clips, len(data.rows))
    losses = []
    with run.ema.in_place_of_weights(run.trainee):
        run.trainee.eval()
        for step, first in enumerate(range(0, count, size)):
            batch = data.batch(step, range(min(size, count - first))).to(run.accelerator.device)
            losses.append(_losses(run, run.trainee, batch, "validation"))
        run.trainee.train()
    return torch.cat(losses).mean().item()


@contextmanager
def _until_sigterm() -> Iterator[Callable[[], bool]]:
    """While inside, a first SIGTERM is remembered, to be asked for; a second one ends the process at once."""
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted.is_set
        return

    def remember(*_: object) -> None:
        wanted.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield wanted.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
