"""Small random feature networks, saved as the real ones are."""

import warnings
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

FRAMES = 4  # that the VideoMAE takes


class LikeI3d(nn.Module):
    """Takes what i3d_torchscript.pt takes, and says what it got."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert x.dim() == 5 and x.size(1) == 3 and x.dtype == torch.float32
        assert rescale and resize and return_features
        return torch.stack([x.mean((1, 2, 3, 4)), x.amax((1, 2, 3, 4)), x[:, :, 0].mean((1, 2, 3))], 1)


class LikeInception(nn.Module):
    def forward(self, x: Tensor, return_features: bool) -> Tensor:
        assert x.dim() == 4 and x.size(1) == 3 and x.dtype == torch.uint8 and return_features
        return x.float().mean((2, 3))


def save_clip(folder: Path) -> None:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    entries = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: position for position, entry in enumerate(entries)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = dict.fromkeys(("eos_token_id", "pad_token_id"), vocabulary["<|endoftext|>"])
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 40, **ends, **width}
    vision = {"image_size": 16, "patch_size": 8, **width}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)


def save_videomae(folder: Path) -> None:
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=FRAMES, tubelet_size=2, hidden_size=16, intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(folder)


def save_i3d(path: Path) -> None:
    _save(LikeI3d(), path)


def save_inception(path: Path) -> None:
    _save(LikeInception(), path)


def _save(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch says that TorchScript will go
        torch.jit.script(network).save(str(path))
