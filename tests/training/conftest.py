"""A small real store: made clips, encoded by a small random VAE."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from encoding import encode

from mmdit.clips.made import make_clips
from mmdit.config import parse_config
from mmdit.training.config import RunConfig


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    make_clips(folder / "clips", 36, seed=0, size=(32, 32), frames=3, fps=8)
    codec = tiny.make_codec()
    codec.vae.save_pretrained(folder / "codec")
    encode(
        folder / "clips", folder / "store", codec, codec_name=str(folder / "codec"), frames=3, size=(32, 32),
        dtype="float16", psnr_every=0,
    )  # fmt: skip
    return folder / "store"


@pytest.fixture(scope="session")
def recipe(store: Path) -> Any:
    """Makes a recipe of seconds, with changes by "key.sub" names."""

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "steps": 6,
            "precision": "float32",
            "data": {"store": str(store), "batch_size": 4, "image_share": 0.3},
            "conditions": {"labels": True, "text": {"width": 16, "depth": 1, "heads": 2}},
            "model": {"hidden_size": 32, "depth": 2, "num_heads": 2, "positions": "rotary"},
            "optimizer": {"lr": 1e-3, "muon_lr": 1e-2, "warmup": 2, "decay": "linear"},
            "ema_decay": 0.9,
            "log_every": 1,
            "validate_every": 3,
            "validation_clips": 3,
            "checkpoint_every": 2,
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = values
            for parent in parents:
                place = place[parent]
            place[last] = value
        return parse_config(RunConfig, values, where="the test's recipe")

    return make
