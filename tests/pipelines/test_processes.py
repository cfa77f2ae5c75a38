"""Whatever a run was trained as, its clips are made by samplers that fit."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from encoding import encode

from mmdit.clips.made import make_clips
from mmdit.config import parse_config
from mmdit.diffusion import samplers_for
from mmdit.errors import Refused
from mmdit.pipelines import load_pipeline
from mmdit.training.config import RunConfig
from mmdit.training.loop import train

PROCESSES: dict[str, dict[str, Any]] = {
    "flow": {"flow": {"shift": 2.0}},
    "epsilon": {"diffusion": {"prediction": "epsilon"}},
    "v": {"diffusion": {"prediction": "v", "variance": "fixed_small", "zero_terminal_snr": True}},
    "x0": {"diffusion": {"prediction": "x0", "betas": "cosine", "min_snr": 5.0, "timesteps": 500}},
}
ASK: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    codec = tiny.make_codec()
    codec.vae.save_pretrained(folder / "codec")
    make_clips(folder / "clips", 16, seed=0, size=(32, 32), frames=3, fps=8)
    encode(folder / "clips", folder / "store", codec, frames=3, size=(32, 32), psnr_every=0)
    return folder / "store"


def run_of(store: Path, folder: Path, **values: Any) -> Path:
    values = {
        "steps": 3,
        "precision": "float32",
        "data": {"store": str(store), "batch_size": 4},
        "conditions": {"labels": True, "text": {"width": 16, "depth": 1, "heads": 2}},
        "model": {"hidden_size": 32, "depth": 2, "num_heads": 2},
        "optimizer": {"lr": 0.01},
        "validate_every": 3,
        "validation_clips": 2,
        **values,
    }
    train(parse_config(RunConfig, values, where="the test's recipe"), folder)
    return folder


@pytest.mark.parametrize("name", PROCESSES)
def test_a_run_of_each_process_makes_clips(name: str, store: Path, tmp_path: Path) -> None:
    tokens = {"model": {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_tokens_by": "cross-attention"}}
    run = run_of(store, tmp_path / "run", **PROCESSES[name], **tokens)
    pipeline = load_pipeline(run, codec=store.parent / "codec")
    pipeline.set_progress_bar_config(disable=True)
    ask = {"prompt": "a red coat", **ASK}
    first = pipeline(**ask).frames
    assert first.shape[1:] == (4, 3, 4, 4)
    assert first.isfinite().all()
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.process == pipeline.process
    assert torch.equal(again(**ask).frames, first)
    for sampler in samplers_for(pipeline.process):
        again.use_sampler(sampler)
        assert again(**ask).frames.isfinite().all(), sampler
    unfit = "ddpm" if name == "flow" else "euler"
    with pytest.raises(Refused, match=f"sampler {unfit} does not fit"):
        again.use_sampler(unfit)


def test_the_words_beside_a_prompts_end_reach_the_clip(store: Path, tmp_path: Path) -> None:
    """With text tokens, what the pipeline tells is what the trainee was told: tokens of the prompt and their mask."""
    model = {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_tokens_by": "in-context"}
    run = run_of(store, tmp_path / "run", model=model)
    pipeline = load_pipeline(run, codec=store.parent / "codec")
    text = pipeline._read_prompts(["a red coat"])
    assert text is not None
    told = pipeline._inputs([tiny_condition("a red coat")], text)
    assert told["text_tokens"].shape[1] == told["text_mask"].shape[1]
    assert 3 <= int(told["text_mask"].sum()) < told["text_mask"].shape[1]
    assert not torch.equal(told["text_tokens"], pipeline._inputs([tiny_condition("")], text)["text_tokens"])


def tiny_condition(prompt: str) -> Any:
    from mmdit.pipelines.request import Condition

    return Condition(prompt, None)


def test_a_frozen_encoder_gives_its_tokens(store: Path, tmp_path: Path) -> None:
    tiny.make_encoder(seed=8).save(tmp_path / "encoder")
    model = {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_tokens_by": "cross-attention", "checkpointing": 1}
    conditions = {"text": {"encoder": str(tmp_path / "encoder")}}
    run = run_of(store, tmp_path / "run", model=model, conditions=conditions, diffusion={})
    pipeline = load_pipeline(run, codec=store.parent / "codec")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red coat", **ASK).frames.isfinite().all()
