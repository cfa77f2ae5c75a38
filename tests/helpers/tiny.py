"""A tiny random pipeline and run folder, as training would leave it; for the tests of pipelines and of `generate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from mmdit import files, seeds
from mmdit.conditioning import TextEncoder, build_text_encoder
from mmdit.latents.codec import Codec
from mmdit.models import DiT
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.training.checkpoint import write_manifest

LABELS = ["coat", "dress", "skirt"]
CLIP = {"frames": 3, "size": [16, 32], "fps": 8}
CAPTIONS = ["a red coat", "a blue dress, turning round"]


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every weight random, so that nothing hides behind a zero start."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=random))


def make_codec(seed: int = 0) -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            latent_channels=4,
            layers_per_block=1,
        )
    return Codec(vae.eval())


def make_network(num_classes: int = 3, text_dim: int = 16, seed: int = 0, patch_frames: int = 1) -> DiT:
    network = DiT(
        sample_size=(3, 2, 4),
        patch_size=(patch_frames, 1, 2),
        in_channels=4,
        hidden_size=32,
        depth=2,
        num_heads=2,
        layout="factorized",
        num_classes=num_classes,
        text_dim=text_dim,
    )
    randomize(network, seed)
    return network.eval()


def make_encoder(seed: int = 0) -> TextEncoder:
    return build_text_encoder(CAPTIONS, width=16, depth=1, heads=2, max_tokens=8, seed=seed).eval()


def make_pipeline(
    labels: bool = True,
    text: bool = True,
    given_frames: Sequence[str] = (),
    null_conditions: Sequence[str] | None = None,
    **options: Any,
) -> ClipPipeline:
    encoder = make_encoder() if text else None
    pipeline = ClipPipeline(
        given_frames=given_frames,
        null_conditions=null_conditions,
        transformer=make_network(len(LABELS) * labels, 16 * text, **options),
        vae=make_codec().vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=encoder.model if encoder else None,
        tokenizer=encoder.tokenizer if encoder else None,
        label_names=LABELS if labels else None,
        clip=CLIP,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def forbid_work(pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every network, the tokenizer, the codec and the drawing of noise fail: a call can only be refused."""

    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("work was begun")

    parts = [(pipeline.transformer, "forward"), (pipeline.vae, "forward")]
    if pipeline.text_encoder is not None:
        parts += [(pipeline.text_encoder, "forward"), (pipeline.tokenizer, "__call__")]
    for part, name in parts:
        monkeypatch.setattr(part, name, work)
    monkeypatch.setattr(Codec, "encode", work)
    monkeypatch.setattr(seeds, "normal", work)


def write_run(
    run: Path,
    *,
    text_encoder: str = "embedded",
    step: int = 5,
    labels: bool = True,
    given_frames: Sequence[str] = (),
    null_conditions: Sequence[str] | None = None,
) -> Path:
    """A run folder with one checkpoint, and the codec beside it; returns the checkpoint."""
    codec = make_codec()
    if not (run / "codec").exists():
        codec.vae.save_pretrained(run / "codec")
    files.write_text(run / "config.yaml", "seed: 0\n")
    folder = run / "checkpoints" / f"step-{step:07d}"
    with files.new_folder(folder) as part:
        for seed, weights in ((1, part), (2, part / "ema")):
            make_network(len(LABELS) * labels, 16 * bool(text_encoder), seed=seed).save_pretrained(
                weights / "transformer"
            )
            if text_encoder == "embedded":
                make_encoder(seed).save(weights)
        state = {
            "format": 1,
            "step": step,
            "label_names": LABELS if labels else [],
            "text_encoder": text_encoder or None,
            "flow": {"times": "logit-normal", "shift": 3.0},
            "latent_shape": [4, 3, 2, 4],
            "codec": {"name": str(run / "codec"), "fingerprint": codec.fingerprint},
            "clip": CLIP,
            "given_frames": list(given_frames),
            "null_conditions": null_conditions,
        }
        files.write_json(part / "state.json", state)
        write_manifest(part)
    return folder
