"""Training, read from top to bottom. The same command on the same folder goes on where it stopped, bit for bit."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from mmdit import files
from mmdit.errors import Stopped
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.config import RunConfig
from mmdit.training.data import Batch
from mmdit.training.meter import Meter, device_peak
from mmdit.training.optimizer import learning_rate_scale, set_learning_rate
from mmdit.training.processes import hold_together, make_accelerator, on_any, until_sigterm
from mmdit.training.resume import finish_save, resume, save
from mmdit.training.resume_rules import check_same_recipe
from mmdit.training.run import Run, begin_run
from mmdit.training.sharding import no_sync, whole
from mmdit.training.snapshot import Writer

# Called after each step with (steps done, steps in all, {"loss": ..., "clips_per_s": ...}), on the main process.
Progress = Callable[[int, int, dict[str, float]], None]


def train(
    config: RunConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    fallback: bool = False,
    accept_data: bool = False,
) -> Path:
    """Trains until `config.steps`, or goes on from the newest checkpoint in `folder`; returns the last checkpoint.

    Every process that a launcher started calls it alike; the global batches do not depend on how many these are.

    Args:
        fallback: when the newest checkpoint is damaged, go on from the newest one that is not.
        accept_data: go on although the store's rows have changed.

    Raises:
        Refused: the store, the folder or the processes do not fit the recipe; found before any step.
        Stopped: asked to stop (SIGTERM), or no finite loss for a while; the last checkpoint is whole.
    """
    accelerator = make_accelerator(config)
    with hold_together(folder, accelerator), until_sigterm() as stop_wanted, Writer() as writer:
        check_same_recipe(config, folder)
        run = begin_run(config, folder, accelerator)
        run.writer = writer
        resume(run, fallback=fallback, accept_data=accept_data)
        share = config.data.batch_size // accelerator.num_processes
        slots = range(share * accelerator.process_index, share * (accelerator.process_index + 1))
        meter = _meter(run)
        started, first = time.monotonic(), run.step
        while run.step < config.steps:
            # ---------------------------------------------------------------- one step
            meter.begin()
            set_learning_rate(run.optimizers, learning_rate_scale(config.optimizer, run.step, config.steps))
            batch = run.splits["train"].batch(run.step, slots).to(accelerator.device)
            meter.got_batch()
            losses = _backward(run, batch)
            norm = _gradient_norm(run)
            loss, good = _judge(run, losses, norm)
            if good:
                run.bad_steps = 0
                _clip(run, norm)
                for optimizer in run.optimizers:
                    optimizer.step()
                run.ema.update(run.trainee, run.step + 1)
            run.scaler.update()
            for optimizer in run.optimizers:
                optimizer.zero_grad(set_to_none=True)
            run.step += 1
            meter.end(batch.latents.shape)
            # ---------------------------------------------------------------- what is said and kept of it
            if not good:
                _count_bad(run, batch, losses)
            seconds = time.monotonic() - started
            _log(run, meter, loss, norm, seconds)
            if progress is not None and accelerator.is_main_process:
                speed = (run.step - first) * config.data.batch_size / seconds
                progress(run.step, config.steps, {"loss": loss, "clips_per_s": speed})
            stop = on_any(accelerator, stop_wanted())
            if run.step % config.checkpoint_every == 0 or run.step == config.steps or stop:
                save(run)
            if stop and run.step < config.steps:
                finish_save(run)
                raise Stopped(
                    "training was asked to stop",
                    where=folder,
                    got=f"step {run.step} of {config.steps}, saved",
                    fix="the same command goes on from here",
                )
        finish_save(run)
    return find_checkpoint(folder)


def _backward(run: Run, batch: Batch) -> Tensor:
    """Leaves the gradient of the mean loss of the global batch on every process; the loss of each sample, (batch,)."""
    count = len(batch.rows)
    parts = list(batch.split(run.config.data.micro_batch or count))
    done: list[Tensor] = []
    for number, part in enumerate(parts, 1):
        # Processes exchange the gradient once, when it is whole.
        with contextlib.nullcontext() if number == len(parts) else no_sync(run.accelerator, run.trainee, run.module):
            losses = _losses(run, run.module, part, "train")
            run.accelerator.backward(run.scaler.scale(losses.mean() * (len(part.rows) / count)))
        done.append(losses.detach())
    return torch.cat(done)


def _losses(run: Run, module: nn.Module, batch: Batch, split: str) -> Tensor:
    """The loss of each sample, (batch,)."""
    captions = None
    if batch.captions is not None:
        captions = tuple(part.to(batch.captions.device)[batch.captions] for part in run.captions[split])

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        with _autocast(run):
            return module(x_t, timesteps, batch.labels, captions)

    return run.process.loss(predict, batch.latents, batch.noise, batch.times).per_sample


def _autocast(run: Run) -> contextlib.AbstractContextManager[None]:
    if run.config.precision == "float16":
        return torch.autocast(run.accelerator.device.type, torch.float16)
    return run.accelerator.autocast()


def _gradient_norm(run: Run) -> Tensor:
    """The norm of the gradient, out of the loss scaler's scale again."""
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    gradients = [weight.grad for weight in run.trainee.parameters() if weight.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))


def _judge(run: Run, losses: Tensor, norm: Tensor) -> tuple[float, bool]:
    """The mean loss of the global batch, and whether it and the gradient are finite on every process.

    Decided before clipping, which would spread one NaN to every weight.
    """
    loss = losses.mean()
    bad = ~(loss.isfinite() & norm.isfinite())
    mean, bad_share = run.accelerator.reduce(torch.stack([loss, bad.to(loss.device, loss.dtype)]), "mean").tolist()
    return mean, bad_share == 0


def _clip(run: Run, norm: Tensor) -> None:
    limit = run.config.optimizer.clip_norm
    if limit is not None:
        nn.utils.clip_grads_with_norm_(run.trainee.parameters(), limit, norm)


def _count_bad(run: Run, batch: Batch, losses: Tensor) -> None:
    """A step changed nothing, on all processes alike. Too many in a row stop the run, which names the clips at fault:
    those without a finite loss, or all where only the gradient is not finite."""
    run.skipped += 1
    run.bad_steps += 1
    if run.bad_steps < run.config.stop_after_bad_steps:
        return
    rows = [row for row, loss in zip(batch.rows, losses.tolist(), strict=True) if not math.isfinite(loss)]
    rows = gather_object(rows) or gather_object(batch.rows)
    clips = ", ".join(run.store.row(row)["id"] for row in rows[:8])
    raise Stopped(
        "no finite loss or gradient",
        where=f"{run.folder}, step {run.step}",
        got=f"{run.bad_steps} such steps in a row, the last on clips {clips}{' ...' * (len(rows) > 8)}",
        fix="lower the learning rate, look at these clips, or set precision=float32",
    )


def _meter(run: Run) -> Meter:
    device, precision = run.accelerator.device, run.accelerator.mixed_precision
    peak = None
    if device.type == "cuda":
        peak = device_peak(torch.cuda.get_device_name(device), "fp16" if run.scaler.is_enabled() else precision)
    network = run.trainee.transformer.config
    text_tokens = run.captions["train"][1].shape[1] if network.text_token_dim else 0
    return Meter(network, peak, time.perf_counter, text_tokens)


def _log(run: Run, meter: Meter, loss: float, norm: Tensor, seconds: float) -> None:
    """Adds a line to metrics.jsonl where one is due; null stands for what is not finite."""
    if math.isfinite(loss):
        run.window = run.window[0] + loss, run.window[1] + 1
    validate = run.step % run.config.validate_every == 0 or run.step == run.config.steps
    if run.step % run.config.log_every and not validate:
        return
    line = {
        "step": run.step,
        "loss": run.window[0] / run.window[1] if run.window[1] else None,
        "grad_norm": norm.item() if math.isfinite(norm.item()) else None,
        "lr": run.optimizers[0].param_groups[0]["lr"],
        "skipped": run.skipped,
        "seconds": round(seconds, 3),
        **meter.line(run.accelerator),
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
