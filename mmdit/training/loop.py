"""Training, read from top to bottom. The same command on the same folder goes on where it stopped, bit for bit."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.training.allocator import keep_freed_memory
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.config import RunConfig
from mmdit.training.data import Batch
from mmdit.training.devices import device_peak
from mmdit.training.loader import batches
from mmdit.training.meter import Meter
from mmdit.training.optimizer import learning_rate_scale, set_learning_rate
from mmdit.training.processes import hold_together, make_accelerator, on_any, until_sigterm
from mmdit.training.reporting import Report, report_kept
from mmdit.training.resume import finish_save, resume, save
from mmdit.training.resume_rules import check_same_recipe, with_precision
from mmdit.training.room import memory_told
from mmdit.training.run import Run, begin_run
from mmdit.training.run_data import write_skipped
from mmdit.training.sharding import no_sync, whole
from mmdit.training.snapshot import Writer
from mmdit.training.trackers import TrackersOfRun, open_trackers
from mmdit.training.validation import held_out
from mmdit.training.watching import samples_folder

# Called after each step with (steps done, steps in all, {"loss": ..., "clips_per_s": ...}), on the main process.
Progress = Callable[[int, int, dict[str, float]], None]
# Makes the clips of a step, called with what says whether to leave off: frames (frame, height, width, 3) by name.
TakeSamples = Callable[[Callable[[], bool]], dict[str, np.ndarray]]


def train(
    config: RunConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    sample: Callable[[Run], TakeSamples] | None = None,
    fallback: bool = False,
    accept_data: bool = False,
    report: Report | None = None,
) -> Path:
    """Trains until `config.steps`, or goes on from the newest checkpoint in `folder`; returns the last checkpoint.

    Every process that a launcher started calls it alike; the global batches do not depend on how many these are.

    Args:
        sample: what prepares the making of samples; `mmdit.pipelines.training_samples.prepare_samples`.
        fallback: when the newest checkpoint is damaged, go on from the newest one that is not.
        accept_data: go on although the store's rows have changed.
        report: called with the folder on the main process at each validation, and at the end, also of a run that is
            stopped. Its failure is a line of the log.

    Raises:
        Refused: the store, the folder or the processes do not fit the recipe; found before any step.
        Stopped: asked to stop (SIGTERM), or no finite loss for a while; the last checkpoint is whole.
    """
    config = with_precision(config, folder)
    accelerator = make_accelerator(config)
    keep_freed_memory()
    report = report if accelerator.is_main_process else None
    with (
        hold_together(folder, accelerator),
        until_sigterm() as stop_wanted,
        report_kept(report, config, folder) as keep_report,
        Writer() as writer,
        contextlib.ExitStack() as opened,
    ):
        check_same_recipe(config, folder)
        run = begin_run(config, folder, accelerator)
        run.writer = writer
        resume(run, fallback=fallback, accept_data=accept_data)
        opened.enter_context(memory_told(run))
        take_samples = _prepared(run, sample)
        trackers = opened.enter_context(open_trackers(run))
        if take_samples is not None and _lacks_samples(run):  # it was stopped between its checkpoint and these
            trackers.show(take_samples(stop_wanted), run.step)
        ready = _batches(run)
        meter = _meter(run)
        started, clips = time.monotonic(), 0
        while run.step < config.steps:
            # ---------------------------------------------------------------- one step
            meter.begin()
            set_learning_rate(run.optimizers, learning_rate_scale(config.optimizer, run.step, config.steps))
            batch = _next(ready).to(accelerator.device)
            meter.got_batch()
            losses = _backward(run, batch)
            norm = _gradient_norm(run)
            loss, good = _judge(run, batch, losses, norm)
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
            clips += len(batch) * accelerator.num_processes
            # ---------------------------------------------------------------- what is said and kept of it
            if not good:
                _count_bad(run, batch, losses)
            seconds = time.monotonic() - started
            _log(run, meter, loss, norm, seconds, trackers)
            if progress is not None and accelerator.is_main_process:
                progress(run.step, config.steps, {"loss": loss, "clips_per_s": clips / seconds})
            stop = on_any(accelerator, stop_wanted())
            if run.step % config.checkpoint_every == 0 or run.step == config.steps or stop:
                save(run)
            keep_report(run.step)
            if take_samples is not None and _sample_is_due(run) and not stop:
                trackers.show(take_samples(stop_wanted), run.step)
                if stop := on_any(accelerator, stop_wanted()):
                    save(run)
            if stop and (run.step < config.steps or (take_samples is not None and _lacks_samples(run))):
                finish_save(run)
                raise Stopped(
                    "training was asked to stop",
                    where=folder,
                    got=f"step {run.step} of {config.steps}, saved",
                    fix="the same command goes on from here",
                )
        finish_save(run)
    return find_checkpoint(folder)


def _batches(run: Run) -> Iterator[Batch]:
    """This process's part of each step that is left."""
    accelerator, steps = run.accelerator, range(run.step, run.config.steps)
    pin = accelerator.device.type == "cuda"
    return batches(run.splits["train"], steps, accelerator.process_index, accelerator.num_processes, pin=pin)


def _next(ready: Iterator[Batch]) -> Batch:
    return next(ready)


def _backward(run: Run, batch: Batch) -> Tensor:
    """Leaves the gradient of the mean loss of the global batch on every process; the loss of each sample, (batch,)."""
    count = len(batch)
    parts = list(batch.split(run.splits["train"].micro_batch(run.step) or count))
    done: list[Tensor] = []
    for number, part in enumerate(parts, 1):
        # Processes exchange the gradient once, when it is whole.
        with contextlib.nullcontext() if number == len(parts) else no_sync(run.accelerator, run.trainee, run.module):
            losses = _losses(run, run.module, part)
            run.accelerator.backward(run.scaler.scale(losses.mean() * (len(part) / count)))
        done.append(losses.detach())
    return torch.cat(done)


def _losses(run: Run, module: nn.Module, batch: Batch) -> Tensor:
    """The loss of each sample, (batch,); 0 for a clip that could not be read."""

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        with _autocast(run):
            return module(x_t, timesteps, batch.labels, batch.text)

    losses = run.process.loss(predict, batch.latents, batch.noise, batch.times, batch.given).per_sample
    return losses if batch.weights is None else losses * batch.weights


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


def _judge(run: Run, batch: Batch, losses: Tensor, norm: Tensor) -> tuple[float, bool]:
    """The mean loss of the clips of the global batch, and whether it and the gradient are finite on every process.

    Decided before clipping, which would spread one NaN to every weight.
    """
    loss = losses.sum()
    clips = torch.tensor(float(len(batch)), device=loss.device) if batch.weights is None else batch.weights.sum()
    bad = ~(loss.isfinite() & norm.isfinite())
    together = run.accelerator.reduce(torch.stack([loss, clips, bad.to(loss.device, loss.dtype)]))
    total, count, bad_count = together.tolist()
    return total / count if count else math.nan, bad_count == 0 and count > 0


def _clip(run: Run, norm: Tensor) -> None:
    limit = run.config.optimizer.clip_norm
    if limit is not None and norm + 1e-6 > limit:  # else every gradient would be multiplied by 1
        nn.utils.clip_grads_with_norm_(run.trainee.parameters(), limit, norm)


def _count_bad(run: Run, batch: Batch, losses: Tensor) -> None:
    """A step changed nothing, on all processes alike. Too many in a row stop the run, which names the clips at fault:
    those without a finite loss, or all where only the gradient is not finite."""
    run.skipped += 1
    run.bad_steps += 1
    if run.bad_steps < run.config.stop_after_bad_steps:
        return
    places = [place for place, loss in zip(batch.places, losses.tolist(), strict=True) if not math.isfinite(loss)]
    places = gather_object(places) or gather_object(batch.places)
    clips = ", ".join(run.sources.row(place)["id"] for place in places[:8])
    raise Stopped(
        "no finite loss or gradient",
        where=f"{run.folder}, step {run.step}",
        got=f"{run.bad_steps} such steps in a row, the last on clips {clips}{' ...' * (len(places) > 8)}",
        fix="lower the learning rate, look at these clips, or set precision=float32",
    )


def _meter(run: Run) -> Meter:
    device, precision = run.accelerator.device, run.accelerator.mixed_precision
    peak = None
    if device.type == "cuda":
        peak = device_peak(torch.cuda.get_device_name(device), "fp16" if run.scaler.is_enabled() else precision)
    network = run.trainee.transformer.config
    texts = run.splits["train"].texts
    text_tokens = texts.tokens if texts is not None and network.get("text_token_dim") else 0
    return Meter(network, peak, time.perf_counter, text_tokens)


def _prepared(run: Run, sample: Callable[[Run], TakeSamples] | None) -> TakeSamples | None:
    is_done = run.step == run.config.steps and (sample is None or not _lacks_samples(run))
    if run.config.samples is None or is_done:
        return None
    if sample is None:
        raise Refused(
            "nothing makes samples here", got="samples in the recipe", expected="samples: null",
            fix="or call train with sample=mmdit.pipelines.training_samples.prepare_samples",
        )  # fmt: skip
    return sample(run)


def _sample_is_due(run: Run) -> bool:
    samples = run.config.samples
    return samples is not None and run.step > 0 and (run.step % samples.every == 0 or run.step == run.config.steps)


def _lacks_samples(run: Run) -> bool:
    """Whether those of the run's step are due and not there; the same answer on all processes."""
    there = samples_folder(run.folder, run.step).is_dir() or not run.accelerator.is_main_process
    return on_any(run.accelerator, _sample_is_due(run) and not there)


def _log(run: Run, meter: Meter, loss: float, norm: Tensor, seconds: float, trackers: TrackersOfRun) -> None:
    """Adds a line to metrics.jsonl where one is due, and tells the trackers; null stands for what is not finite."""
    if math.isfinite(loss):
        run.window = run.window[0] + loss, run.window[1] + 1
    validate = run.step % run.config.validate_every == 0 or run.step == run.config.steps
    if run.step % run.config.log_every and not validate:
        return
    line = {
        "step": run.step,
        "loss": run.window[0] / run.window[1] if run.window[1] else None,
        "grad_norm": norm.item() if math.isfinite(norm.item()) else None,
        "lr": float(run.optimizers[0].param_groups[0]["lr"]),
        "skipped": run.skipped,
        "seconds": round(seconds, 3),
        **meter.line(run.accelerator),
    }
    if validate:
        write_skipped(run)
        line |= held_out(run, lambda batch: _losses(run, run.trainee, batch))
    run.window = 0.0, 0
    if run.accelerator.is_main_process:
        files.append_line(run.folder / "metrics.jsonl", json.dumps(line))
        trackers.log(line)
