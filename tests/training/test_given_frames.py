"""A recipe that trains given frames: what a first frame tells the network, and what a checkpoint says of it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import stores
import torch
from torch import Tensor

from mmdit.clips.source import SourceClip
from mmdit.config import parse_config
from mmdit.diffusion import RectifiedFlow
from mmdit.latents.plan import Planned
from mmdit.latents.shards import Recorded, write_shard
from mmdit.latents.tables import write_tables
from mmdit.models import DiT
from mmdit.seeds import normal
from mmdit.training.checkpoint import read_state
from mmdit.training.config import RunConfig
from mmdit.training.loop import train

CLIPS, SHAPE = 192, (2, 4, 2, 2)


def latent(number: int) -> Tensor:
    """A picture that fades into its negative: the first frame says all of the others."""
    return normal((2, 1, 2, 2), 0, "picture", number) * torch.tensor([1.0, 0.5, -0.5, -1.0]).view(1, 4, 1, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fading")
    recorded, plan, rows, tensors = Recorded(), [], list[dict[str, Any]](), {}
    for number in range(CLIPS):
        id = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        clip = SourceClip(f"{number}.mp4", "a picture", "ab"[number % 2], "train", {})
        plan.append(Planned(id, clip, SHAPE[1], (4, 4), fps=8.0))
        mean = tensors[f"{id}.mean"] = latent(number)
        tensors[f"{id}.std"] = torch.zeros(SHAPE)
        sums = {"total": mean.sum((1, 2, 3)).tolist(), "square": (mean**2).sum((1, 2, 3)).tolist()}
        row = {"id": id, "source": f"{number}.mp4", "reason": None}
        about = {"latent": list(SHAPE), "speed": 1.0, "frames": SHAPE[1], "height": 4, "width": 4, "fps": 8.0}
        rows.append(row | about | sums | {"flip": False, "stride": None})
    recorded.add(0, rows, write_shard(folder, 0, stores.SETTINGS, rows, tensors))
    write_tables(folder, plan, recorded, stores.SETTINGS, stores.ABOUT)
    return folder


@pytest.fixture(scope="module")
def checkpoint(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values: dict[str, Any] = {
        "steps": 100, "precision": "float32", "ema_decay": 0.9, "checkpoint_every": 1000,
        "data": {"store": str(store), "batch_size": 32, "image_share": 0.0},
        "conditions": {"labels": False, "given_frames": {"first": 0.4, "prefix": 0.2, "last": 0.0}},
        "model": {"hidden_size": 48, "depth": 2, "num_heads": 2, "patch_size": [1, 2, 2]},
        "optimizer": {"lr": 3e-3, "muon_lr": 0.03, "warmup": 5},
    }  # fmt: skip
    config = parse_config(RunConfig, values, where="the test's recipe")
    return train(config, tmp_path_factory.mktemp("given") / "run")


def test_a_checkpoint_says_what_kinds_of_given_frames_it_was_trained_with(checkpoint: Path) -> None:
    assert read_state(checkpoint)["given_frames"] == ["first", "prefix"]


def test_a_given_first_frame_brings_the_others_nearer_to_the_truth(checkpoint: Path) -> None:
    """On clips that it was not trained on, with the same noise and times; a mask alone tells nothing."""
    network = DiT.from_pretrained(checkpoint / "ema" / "transformer").eval()
    clips = torch.stack([latent(10_000 + number) for number in range(64)])
    noise, times = normal(tuple(clips.shape), 1, "noise"), torch.linspace(0.3, 0.99, 64)
    mask = torch.zeros(64, SHAPE[1], dtype=torch.bool)
    mask[:, 0] = True
    flow = RectifiedFlow()
    velocity = flow.velocity(clips, noise)

    def loss_of_the_others(given: Tensor | None, shown: Tensor) -> float:
        held = flow.add_noise(clips, noise, times)
        stamps = (times * 1000)[:, None].expand(64, SHAPE[1])
        if given is not None:
            held = torch.where(given[:, None, :, None, None], shown, held)
            stamps = torch.where(given, 0.0, stamps)
        with torch.no_grad():
            return float(((network(held, stamps) - velocity)[:, :, 1:] ** 2).mean())

    without, with_first = loss_of_the_others(None, clips), loss_of_the_others(mask, clips)
    of_another = loss_of_the_others(mask, clips.roll(1, dims=0))
    assert with_first < 0.6 * without
    assert of_another > 1.2 * without
