"""Feature networks: small random ones, saved and called as the real ones are."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmdit.errors import Refused
from mmdit.evaluation.features import (
    NETWORKS,
    ClipFeatures,
    ClipScore,
    Features,
    find_network,
    fingerprint_of,
    least_frames,
    pictures,
)

CPU = torch.device("cpu")
FRAMES = 4


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


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Features]:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    torch.jit.script(LikeI3d()).save(str(folder / "i3d.pt"))
    torch.jit.script(LikeInception()).save(str(folder / "inception.pt"))
    save_clip(folder / "clip")
    save_videomae(folder / "videomae")
    paths = {"i3d": "i3d.pt", "inception": "inception.pt", "clip": "clip", "videomae": "videomae"}
    found = {name: find_network(name, folder / path) for name, path in paths.items()}
    found["probe"] = find_network("probe", None)
    return {name: NETWORKS[name](path, CPU) for name, path in found.items()}


def clips_of(count: int, frames: int = 6, height: int = 20, width: int = 24) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, frames, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "size"), [("probe", 256), ("i3d", 3), ("inception", 3), ("clip", 8), ("videomae", 16)]
)
def test_features_of_clips_or_of_their_frames(name: str, size: int, networks: dict[str, Features]) -> None:
    clips, network = clips_of(5), networks[name]
    features = network(clips)
    assert features.shape == ((5, 6, size) if network.of_frames else (5, size))
    assert features.dtype == torch.float32 and features.isfinite().all()
    assert not torch.allclose(features[0], features[1], atol=1e-6)
    assert len(network.fingerprint) == 64


def test_i3d_takes_levels_of_255_and_inception_bytes(networks: dict[str, Features]) -> None:
    clips = clips_of(10)
    assert networks["i3d"](clips)[:, 0].tolist() == pytest.approx(clips.float().mean((1, 2, 3, 4)).tolist(), rel=1e-4)
    frames = clips.float().mean((3, 4)).transpose(1, 2)
    assert torch.allclose(networks["inception"](clips), frames, rtol=1e-4)


def test_pictures_are_as_the_slow_processor_makes_them(tmp_path: Path) -> None:
    """Sizes that come out whole, so that nothing but the scaling differs, and that by its rounding."""
    processor: Any = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    processor.save_pretrained(tmp_path)
    frames = F.interpolate(clips_of(3, 1, 4, 6)[:, :, 0].float(), (32, 48), mode="bilinear").byte()
    theirs = processor(list(frames.permute(0, 2, 3, 1).numpy()), return_tensors="pt").pixel_values
    assert torch.allclose(pictures(tmp_path, 16, "CLIP")(frames), theirs, atol=0.03)


def test_a_clip_that_is_longer_than_videomae_takes_is_seen_from_end_to_end(networks: dict[str, Features]) -> None:
    clips = clips_of(1, 10)
    other = clips.clone()
    other[:, :, 9] = 0
    assert not torch.allclose(networks["videomae"](clips), networks["videomae"](other), atol=1e-5)
    picked = clips[:, :, [0, 3, 6, 9]]
    assert torch.allclose(networks["videomae"](clips), networks["videomae"](picked), atol=1e-6)
    assert least_frames("videomae", networks["videomae"].path) == FRAMES
    assert least_frames("i3d", Path("anywhere")) == 10


def test_clip_score_is_a_hundred_times_the_cosine(networks: dict[str, Features]) -> None:
    clip = cast(ClipFeatures, networks["clip"])
    score, features = ClipScore(clip), clip(clips_of(2))
    model = transformers.CLIPModel.from_pretrained(clip.path).eval()
    tokens = score.tokenizer("red coat", return_tensors="pt")
    pixels = clip.prepare(clips_of(2).transpose(1, 2).flatten(0, 1))
    with torch.no_grad():
        out = model(**tokens, pixel_values=pixels)
    by_frame = out.logits_per_image[:, 0] / model.logit_scale.exp()
    expected = 100 * by_frame.clamp(min=0).view(2, 6).mean(1)
    found = score(features, ["red coat", "red coat"])
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.allclose(score(features, ["red coat", "a long dress"])[0], found[0], atol=1e-5)


def test_a_fingerprint_is_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first, alone = fingerprint_of(tmp_path), fingerprint_of(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"2")
    assert fingerprint_of(tmp_path) != first and fingerprint_of(tmp_path / "a") != alone


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.pt").write_bytes(b"not a network")
    with pytest.raises(Refused, match="no TorchScript file"):
        NETWORKS["i3d"](tmp_path / "some.pt", CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match="no whole model"):
        NETWORKS["clip"](tmp_path, CPU)
    with pytest.raises(Refused, match="a folder with config.json"):
        find_network("videomae", tmp_path / "some.pt")
