"""The card of a trained codec: what it is, from what, by which command, how long, how good."""

import json
import platform
from pathlib import Path

import torch

from mmdit.latents.codec import Codec
from mmdit.training.codec_recipe import CodecRecipe


def codec_card(recipe: CodecRecipe, codec: Codec, figures: dict[str, float], *, name: str, command: str) -> str:
    """The card as Markdown.

    Args:
        figures: what `train_codec` returns.
        name: what the codec is called.
        command: what was typed to train it.
    """
    height, width = recipe.size
    size = (recipe.frames, height, width)
    grid = codec.latent_size(size)
    rule = f"{codec.time_factor}k + 1" if codec.time_factor > 1 else "any number of"
    machine = f"{recipe.threads} CPU thread(s) of {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    machine += f", torch {torch.__version__}"
    rows = "\n".join(f"| {row} |" for row in _figure_rows(figures))
    return f"""# {name}: a small causal video codec

A video VAE, diffusers' `{type(codec.vae).__name__}`: {codec.space_factor}x smaller in height and width, \
{codec.time_factor}x in time, {codec.channels} channels.
A clip of {recipe.frames} frames of {height}x{width} becomes a latent of \
{codec.channels} x {" x ".join(map(str, grid))} (channel, frame, height, width); it takes {rule} frames, and height and
width in multiples of {codec.space_factor}. The latent of an image is the first one of a clip that begins with it.
Latents are normalised per channel (`latents_mean`, `latents_std` among the weights).

- weights: {figures["parameters"]:,.0f}, {figures["bytes"] / 1e6:.1f} MB in half precision
- fingerprint: {codec.fingerprint}

## Data

{_data(recipe)}

## Command

    {command}

{figures["steps"]:,.0f} steps in {figures["seconds"]:,.0f} seconds; {machine}.

## Figures

| what | validation | held-out combinations |
|---|---|---|
{rows}

PSNR: 10 log10(2^2 / mean squared error) of pixels in [-1, 1], a clip; against the frames as read from the mp4 files.
An image is the middle frame of each clip, encoded and decoded by itself.

It has seen drawn figures only: on other pictures expect less; train one on your own clips with the same command.
"""


def _figure_rows(figures: dict[str, float]) -> list[str]:
    names = {
        "psnr": "clips, PSNR in dB, mean",
        "psnr_worst": "clips, PSNR in dB, worst clip",
        "image_psnr": "images, PSNR in dB, mean",
        "latent_mean": "normalised latents, mean",
        "latent_std": "normalised latents, deviation",
    }
    return [
        f"{words} | {figures[f'validation_{key}']:.2f} | {figures[f'held_out_{key}']:.2f}"
        for key, words in names.items()
    ]


def _data(recipe: CodecRecipe) -> str:
    """How the clips came to be, where the folder says it."""
    made = Path(recipe.clips) / "made.json"
    read = "read at {}x{}, {} frames, {:g} frames a second".format(*recipe.size, recipe.frames, recipe.fps)
    if not made.is_file():
        return f"The clips of a folder with a captions.csv, {read}; the splits train, validation and held_out."
    facts = json.loads(made.read_text(encoding="utf-8"))
    height, width = facts["size"]
    return (
        f"Made clips, {read}; trained on the split train:\n\n"
        f"    mmdit make-clips {Path(recipe.clips).name} --count {facts['count']} --seed {facts['seed']} "
        f"--size {height}x{width} --frames {facts['frames']} --fps {facts['fps']:g}"
    )
