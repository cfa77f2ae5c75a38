"""Training of a small video codec: a causal LTX video VAE of diffusers, on clips held in memory.

The encoder gives the mean of a latent; the decoder sees it with a little fixed noise, relative to the spread of its
channel, which takes the place of a learned variance. A light pull keeps each channel near zero mean and unit deviation.
Loss: squared, absolute, and absolute difference of neighbouring pixels (edges).
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit import files, seeds
from mmdit.errors import Refused, Stopped
from mmdit.latents.codec import Codec, load_codec
from mmdit.latents.fidelity import psnr
from mmdit.training.codec_data import make_batch, read_split, to_clips
from mmdit.training.codec_recipe import CodecRecipe, learning_rate_scale, loss_weights, second_stage
from mmdit.training.codec_run import CodecRun, resume_run, save_run
from mmdit.training.ema import EMA
from mmdit.training.muon import KernelMuon

WEIGHTS = "diffusion_pytorch_model.safetensors"
Progress = Callable[[int, int, str], None]


def train_codec(
    recipe: CodecRecipe,
    folder: str | Path,
    *,
    codec_folder: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Trains a codec, or goes on with a run that was stopped, and measures it.

    Args:
        folder: the run's own: recipe.yaml, checkpoint.safetensors, metrics.jsonl, figures.json; `first`, the codec of
            the first stage, and `then`, the run of the second, where there are two.
        codec_folder: where the codec is written, as diffusers loads it; by default `codec` in the run's folder.
        progress: called with (step, steps, a few words).

    Returns:
        The figures of the finished codec on all validation and held-out clips: see `measure`; and `steps`, `seconds`,
        `parameters`, `bytes`.

    Raises:
        Refused: clips or settings that cannot be trained on, or a folder that was begun with another recipe.
        Stopped: the loss became infinite or not a number; the last checkpoint is intact.
    """
    folder = Path(folder)
    target = Path(codec_folder) if codec_folder is not None else folder / "codec"
    second = second_stage(recipe, "recipe")
    stages = [recipe] if second is None else [recipe, second]
    vaes = [_build(stage) for stage in stages]
    for stage, vae in zip(stages, vaes, strict=True):
        Codec(vae).latent_size((stage.frames, *stage.size))
        Codec(vae).latent_size((stage.batch_frames, *stage.size))
    _further_weights(vaes[0], vaes[-1])
    with files.lock(folder):
        # Each stage has a folder of its own for its codec, so that a run can be taken up anywhere.
        run = _train_stage(recipe, folder, target if second is None else folder / "first", None, progress)
        seconds, steps = run.seconds, run.step
        if second is not None:
            run = _train_stage(second, folder / "then", target, run, progress)
            seconds, steps = seconds + run.seconds, steps + run.step
        codec = load_codec(target)
        figures = {
            "steps": float(steps),
            "seconds": round(seconds),
            "parameters": float(sum(weight.numel() for weight in run.vae.parameters())),
            "bytes": float((target / WEIGHTS).stat().st_size),
        }
        for split in ("validation", "held_out"):
            figures |= measure(codec, _read(recipe, split, None), split)
        files.write_json(folder / "figures.json", figures)
    return figures


def measure(codec: Codec, data: Tensor, name: str, batch_size: int = 16) -> dict[str, float]:
    """Reconstruction of bytes (clip, frame, height, width, 3): PSNR in dB, mean over clips, and of the worst clip.

    `{name}_psnr`, `{name}_psnr_worst`, `{name}_image_psnr` (each clip's middle frame as an image by itself), and
    `{name}_latent_mean` and `_std`: of the normalised latents, over everything.
    """
    clips, images, latents = [], [], []
    for rows in data.split(batch_size):
        wanted = to_clips(rows)
        latent = codec.encode(wanted).mean
        clips.append(psnr(codec.decode(latent), wanted))
        latents.append(latent)
        image = wanted[:, :, wanted.shape[2] // 2][:, :, None]
        images.append(psnr(codec.decode(codec.encode(image).mean), image))
    every, latent = torch.cat(clips), torch.cat(latents)
    figures = {
        "psnr": every.mean(),
        "psnr_worst": every.min(),
        "image_psnr": torch.cat(images).mean(),
        "latent_mean": latent.mean(),
        "latent_std": latent.std(),
    }
    return {f"{name}_{key}": round(value.item(), 3) for key, value in figures.items()}


# --- the run ---


def _train_stage(
    recipe: CodecRecipe, folder: Path, target: Path, first: CodecRun | None, progress: Progress | None
) -> CodecRun:
    """Trains one stage to its end, from the checkpoint in its folder, from the stage before, or from the beginning."""
    torch.set_num_threads(recipe.threads)
    vae = _build(recipe)
    if first is not None:
        _take_over(vae, first)
    run = _new_run(recipe, vae)
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    resume_run(run, recipe, folder)
    if run.step < recipe.steps or not (target / WEIGHTS).is_file():
        train = _read(recipe, "train", recipe.most_clips)
        if run.step == 0 and first is None:
            _start_at_mean_colour(run.vae, train)
            run.ema = EMA(run.vae, recipe.ema)
        _train(run, recipe, folder, target, train, progress)
    return run


def _new_run(recipe: CodecRecipe, vae: Any) -> CodecRun:
    vae.encoder.requires_grad_(recipe.trained == "all")
    last = {"encoder.conv_out.conv.weight", "decoder.conv_out.conv.weight"}
    trained = [(name, weight) for name, weight in vae.named_parameters() if weight.requires_grad]
    kernels = [weight for name, weight in trained if weight.ndim == 5 and name not in last]
    chosen = {id(weight) for weight in kernels}
    others = [weight for _, weight in trained if id(weight) not in chosen]
    optimizers = [
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
        KernelMuon(kernels, lr=recipe.muon_lr),
    ]
    return CodecRun(vae, EMA(vae, recipe.ema), optimizers)


@torch.no_grad()
def _take_over(vae: Any, first: CodecRun) -> None:
    """Gives `vae` the averaged weights of a finished run. Residual blocks it has beyond those begin as the identity."""
    further = _further_weights(first.vae, vae)
    with first.ema.in_place_of_weights(first.vae):
        vae.load_state_dict(first.vae.state_dict(), strict=False)
    for name, weight in vae.named_parameters():
        if name in further and ".conv2." in name:
            weight.zero_()


def _further_weights(small: Any, large: Any) -> set[str]:
    """The names of the weights that a second stage has beyond those of the first: of residual blocks only."""
    old, new = ({name: weight.shape for name, weight in vae.state_dict().items()} for vae in (small, large))
    for name in old | new:
        if (name in old and old[name] != new.get(name)) or (name not in old and ".resnets." not in name):
            raise Refused(
                "the second stage cannot begin with the weights of the first",
                where="then.vae",
                got=f"another {name}",
                expected="the same layers, or more of those that layers_per_block and decoder_layers_per_block count",
            )
    return set(new) - set(old)


def _build(recipe: CodecRecipe) -> Any:
    from diffusers import AutoencoderKLLTXVideo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_at(recipe.seed, "codec weights"))
        vae = AutoencoderKLLTXVideo(**recipe.vae)
    # The class predicts one log variance, here a constant: the noise that the decoder is trained with.
    last = vae.encoder.conv_out.conv
    with torch.no_grad():
        last.weight[-1].zero_()
        last.bias[-1] = 2 * math.log(recipe.latent_noise)
    return vae.train().to(memory_format=torch.channels_last_3d)


@torch.no_grad()
def _start_at_mean_colour(vae: Any, data: Tensor) -> None:
    """The decoder begins with the mean colour of the data, which is most of what the first minutes would learn."""
    colour = data[:: max(1, len(data) // 256)].float().mean((0, 1, 2, 3)) / 127.5 - 1
    bias = vae.decoder.conv_out.conv.bias
    bias.copy_(colour.repeat_interleave(len(bias) // 3))


def _read(recipe: CodecRecipe, split: str, most: int | None) -> Tensor:
    return read_split(recipe.clips, split, frames=recipe.frames, size=recipe.size, fps=recipe.fps, most=most)


def _train(
    run: CodecRun, recipe: CodecRecipe, folder: Path, target: Path, train: Tensor, progress: Progress | None
) -> None:
    validation = _read(recipe, "validation", recipe.validation_clips)
    mark = time.monotonic()
    while run.step < recipe.steps:
        loss = _step(run, recipe, train)
        if not math.isfinite(loss):
            raise Stopped("the loss is not a number", where=f"step {run.step}", fix="lower lr and muon_lr")
        if run.step == recipe.steps or run.step % recipe.save_every == 0:
            run.seconds += time.monotonic() - mark
            _export(run, recipe, target, train)
            figures = measure(load_codec(target), validation, "validation")
            run.history.append({"step": run.step, "loss": loss, "seconds": round(run.seconds), **figures})
            save_run(run, folder)
            mark = time.monotonic()
        if progress is not None:
            quality = f", validation {run.history[-1]['validation_psnr']:.2f} dB" if run.history else ""
            progress(run.step, recipe.steps, f"loss {loss:.4f}{quality}")
    if not (target / WEIGHTS).is_file():
        _export(run, recipe, target, train)


def _step(run: CodecRun, recipe: CodecRecipe, train: Tensor) -> float:
    """One optimizer step; the loss before it."""
    step = run.step
    kind = recipe.kinds[step % len(recipe.kinds)]
    clips = make_batch(
        train, kind, batch_size=recipe.batch_size, frames=recipe.batch_frames, seed=recipe.seed, step=step
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        with torch.set_grad_enabled(recipe.trained == "all"):
            latents = run.vae.encoder(clips)[:, : run.vae.config.latent_channels].float()
        std, mean = torch.std_mean(latents, (0, 2, 3, 4), keepdim=True)
        noise = seeds.normal(tuple(latents.shape), recipe.seed, "codec noise", step)
        decoded = run.vae.decoder(latents + recipe.latent_noise * std.detach() * noise)
    error = decoded.float() - clips
    absolute, edges = loss_weights(recipe, step)
    loss = error.square().mean() + absolute * error.abs().mean()
    loss = loss + edges * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    loss = loss + recipe.pull * (mean.square().mean() + std.log().square().mean())
    loss.backward()
    scale = learning_rate_scale(recipe, step)
    for optimizer, rate in zip(run.optimizers, (recipe.lr, recipe.muon_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.ema.update(run.vae, run.step)
    return loss.item()


@torch.no_grad()
def _export(run: CodecRun, recipe: CodecRecipe, target: Path, train: Tensor) -> None:
    """Writes the averaged weights, in half precision, with the latents' mean and deviation over training clips."""
    with run.ema.in_place_of_weights(run.vae):
        if recipe.trained == "all":
            # Between checkpoints an estimate does; the finished codec has it from many clips.
            some = train[:: max(1, len(train) // (1024 if run.step == recipe.steps else 128))]
            latents = [run.vae.encoder(to_clips(rows))[:, : run.vae.config.latent_channels] for rows in some.split(16)]
            std, mean = torch.std_mean(torch.cat(latents), (0, 2, 3, 4))
            run.vae.latents_mean.copy_(mean)
            run.vae.latents_std.copy_(std)
        weights = {name: weight.half() for name, weight in run.vae.state_dict().items()}
    target.mkdir(parents=True, exist_ok=True)
    files.write_text(target / "config.json", run.vae.to_json_string())
    files.write_safetensors(target / WEIGHTS, weights, {"format": "pt"})
