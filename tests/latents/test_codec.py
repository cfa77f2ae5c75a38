"""The codec's promises, over every diffusers class in the table, and over the one that comes with mmdit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLLTXVideo
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused
from mmdit.latents.codec import SPECS, Codec, Posterior, fingerprint, load_codec, shipped_codecs

LTX = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("LTXVideo095DownBlock3D",),
    "downsample_type": ("spatiotemporal",),
    "spatio_temporal_scaling": (True,),
    "layers_per_block": (1, 1),
    "decoder_block_out_channels": (8,),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_layers_per_block": (1, 1),
    "decoder_inject_noise": (False, False),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
}
KL = {
    "latent_channels": 3,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "shift_factor": 0.3,
    "scaling_factor": 0.7,
}
# name of the case: class, settings
CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ltx": (AutoencoderKLLTXVideo, LTX),
    "ltx with a decoding time": (AutoencoderKLLTXVideo, LTX | {"timestep_conditioning": True, "scaling_factor": 0.5}),
    "image": (AutoencoderKL, KL),
    "image with channel statistics": (
        AutoencoderKL,
        KL | {"shift_factor": None, "latents_mean": (0.1, 0.2, 0.3), "latents_std": (1.0, 2.0, 3.0)},
    ),
}


def build(case: str) -> Codec:
    kind, settings = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = kind(**settings).eval()
        if kind is AutoencoderKLLTXVideo:
            vae.latents_mean.copy_(torch.randn(4))
            vae.latents_std.copy_(torch.rand(4) + 0.5)
    return Codec(vae)


def some_clips(codec: Codec, frames: int, batch: int = 2) -> Tensor:
    return seeds.uniform((batch, 3, frames, 2 * codec.space_factor, 3 * codec.space_factor), 0, "clips", frames) * 2 - 1


@pytest.fixture(params=CASES)
def codec(request: pytest.FixtureRequest) -> Codec:
    return build(request.param)


def test_every_class_in_the_table_is_tested() -> None:
    assert {kind.__name__ for kind, _ in CASES.values()} == set(SPECS)


def test_as_many_frames_come_back_as_went_in(codec: Codec) -> None:
    for frames in (1, 1 + codec.time_factor, 1 + 2 * codec.time_factor):
        clips = some_clips(codec, frames)
        posterior = codec.encode(clips)
        grid = codec.latent_size((frames, *clips.shape[3:]))
        assert posterior.mean.shape == posterior.std.shape == (2, codec.channels, *grid)
        assert posterior.mean.dtype == posterior.std.dtype == torch.float32
        assert codec.clip_frames(grid[0]) == frames
        back = codec.decode(posterior.mean)
        assert back.shape == clips.shape
        assert back.dtype == torch.float32
        assert back.abs().max() <= 1


def test_the_latent_of_an_image_is_the_first_of_a_clip_that_begins_with_it(codec: Codec) -> None:
    clips = some_clips(codec, 1 + 2 * codec.time_factor)
    clip, image = codec.encode(clips), codec.encode(clips[:, :, :1])
    torch.testing.assert_close(clip.mean[:, :, :1], image.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.std[:, :, :1], image.std, rtol=1e-4, atol=1e-5)


def test_a_latent_does_not_depend_on_later_frames(codec: Codec) -> None:
    clips = some_clips(codec, 1 + 2 * codec.time_factor)
    other = clips.clone()
    other[:, :, 1 + codec.time_factor :] *= -1
    one, two = codec.encode(clips).mean, codec.encode(other).mean
    torch.testing.assert_close(one[:, :, :2], two[:, :, :2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one[:, :, 2:], two[:, :, 2:], rtol=1e-2, atol=1e-2)


def test_a_clip_does_not_depend_on_its_batch(codec: Codec) -> None:
    clips = some_clips(codec, 1 + codec.time_factor, batch=3)
    together = codec.encode(clips).mean
    alone = torch.cat([codec.encode(clip[None]).mean for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        codec.decode(together), torch.cat([codec.decode(latent[None]) for latent in together]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("case", CASES)
def test_the_normalisation_is_what_diffusers_says_it_is(case: str) -> None:
    codec = build(case)
    clips = some_clips(codec, 1)
    vae = codec.vae
    raw = vae.encode(clips if case.startswith("ltx") else clips[:, :, 0]).latent_dist
    mean = raw.mean if case.startswith("ltx") else raw.mean[:, :, None]
    std = raw.std if case.startswith("ltx") else raw.std[:, :, None]
    if case.startswith("ltx"):  # _normalize_latents in diffusers' LTX pipelines
        shift, scale = vae.latents_mean, vae.latents_std / vae.config.scaling_factor
    elif case == "image":  # diffusers' Flux and Stable Diffusion 3 pipelines
        shift, scale = torch.full((3,), 0.3), torch.full((3,), 1 / 0.7)
    else:
        shift, scale = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]) / 0.7
    shift, scale = shift.view(-1, 1, 1, 1), scale.view(-1, 1, 1, 1)
    posterior = codec.encode(clips)
    torch.testing.assert_close(posterior.mean, (mean - shift) / scale)
    torch.testing.assert_close(posterior.std, std / scale)
    options = {"temb": torch.zeros(2)} if vae.config.get("timestep_conditioning") else {}
    wanted = vae.decode(mean if case.startswith("ltx") else mean[:, :, 0], **options).sample
    torch.testing.assert_close(
        codec.decode(posterior.mean), wanted.reshape(clips.shape).clamp(-1, 1), rtol=1e-4, atol=1e-5
    )


def test_a_draw_has_the_mean_and_the_deviation() -> None:
    posterior = Posterior(torch.full((1, 2, 1, 1, 1), 3.0), torch.full((1, 2, 1, 1, 1), 0.5))
    assert posterior.sample(torch.full((1, 2, 1, 1, 1), 2.0)).flatten().tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("size", "nearest"), [((16, 64, 48), "15 frames of 64x48"), ((17, 60, 50), "17 frames of 64x48")]
)
def test_a_size_that_would_not_come_back_is_refused_with_the_nearest(size: tuple[int, int, int], nearest: str) -> None:
    codec = build("ltx")
    with pytest.raises(Refused, match=nearest):
        codec.latent_size(size)
    with pytest.raises(Refused, match=nearest):
        codec.encode(torch.zeros(1, 3, *size))


def test_any_number_of_frames_is_good_for_a_codec_of_images() -> None:
    codec = build("image")
    assert [codec.nearest_frames(n) for n in (0, 1, 2, 16)] == [1, 1, 2, 16]
    assert codec.latent_size((16, 8, 6)) == (16, 4, 3)


def test_the_nearest_number_of_frames_is_not_above() -> None:
    codec = build("ltx")
    assert [codec.nearest_frames(n) for n in (0, 1, 2, 3, 16, 17)] == [1, 1, 1, 3, 15, 17]


def test_what_are_not_clips_or_latents_is_refused() -> None:
    codec = build("ltx")
    for wrong in (torch.zeros(3, 1, 8, 8), torch.zeros(1, 4, 1, 8, 8)):
        with pytest.raises(Refused, match="not clips"):
            codec.encode(wrong)
    for wrong in (torch.zeros(4, 1, 1, 1), torch.zeros(1, 3, 1, 1, 1)):
        with pytest.raises(Refused, match="not latents"):
            codec.decode(wrong)


# --- loading ---


@pytest.mark.parametrize("case", CASES)
def test_a_saved_codec_loads_the_same(case: str, tmp_path: Path) -> None:
    codec = build(case)
    codec.vae.save_pretrained(tmp_path / "pipeline" / "vae")
    for folder in (tmp_path / "pipeline" / "vae", tmp_path / "pipeline"):
        again = load_codec(folder)
        clips = some_clips(codec, 1 + codec.time_factor)
        assert torch.equal(again.encode(clips).mean, codec.encode(clips).mean)
        assert again.fingerprint == codec.fingerprint


def test_the_fingerprint_is_of_the_values_not_of_how_they_are_held(tmp_path: Path) -> None:
    codec = build("ltx")
    codec.vae.save_pretrained(tmp_path / "wide")
    wide = load_codec(tmp_path / "wide").fingerprint
    assert load_codec(tmp_path / "wide", dtype=torch.bfloat16).fingerprint == wide
    codec.vae.half().save_pretrained(tmp_path / "half")
    half = load_codec(tmp_path / "half").fingerprint
    assert half == load_codec(tmp_path / "half", dtype=torch.bfloat16).fingerprint == fingerprint(codec.vae)
    assert half != wide


def test_the_fingerprint_knows_weights_and_config() -> None:
    codec, other = build("ltx"), build("ltx")
    assert codec.fingerprint == other.fingerprint
    other.vae.latents_std[0] += 1e-3
    assert fingerprint(other.vae) != codec.fingerprint
    assert build("ltx with a decoding time").fingerprint != codec.fingerprint


def test_a_narrower_type_gives_about_the_same_in_float32(tmp_path: Path) -> None:
    build("ltx").vae.save_pretrained(tmp_path)
    wide, narrow = load_codec(tmp_path), load_codec(tmp_path, dtype=torch.bfloat16)
    clips = some_clips(wide, 3)
    latents = narrow.encode(clips).mean
    assert latents.dtype == narrow.decode(latents).dtype == torch.float32
    torch.testing.assert_close(latents, wide.encode(clips).mean, rtol=0.1, atol=0.1)


def test_refused_by_name_or_class(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such codec, got fasion, expected one of fashion"):
        load_codec("fasion")
    with pytest.raises(Refused, match=r"config\.json"):
        load_codec(tmp_path)
    settings = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    other = AutoencoderDC(
        **settings, **layers, **kinds, encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ())
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(Refused, match=r"does not know this codec class, .*AutoencoderDC"):
        load_codec(tmp_path / "other")
    with pytest.raises(Refused, match="does not know this codec class"):
        Codec(other)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    build("ltx").vae.save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Refused, match="weights cannot be read"):
        load_codec(tmp_path)


# --- the codec that comes with mmdit ---


@pytest.fixture(scope="module")
def fashion() -> Codec:
    return load_codec("fashion")


def test_the_shipped_codec_is_small_and_has_a_card() -> None:
    folder = shipped_codecs()["fashion"]
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 5_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("make-clips", "train-codec", "PSNR", "seconds"):
        assert word in card


def test_the_shipped_codec_has_the_promised_factors(fashion: Codec) -> None:
    assert fashion.space_factor == 8
    assert fashion.time_factor in (2, 4)
    assert fashion.latent_size((17, 64, 48)) == (16 // fashion.time_factor + 1, 8, 6)


def test_the_shipped_codec_gives_an_image_the_first_latent_of_its_clip(fashion: Codec) -> None:
    clips = some_clips(fashion, 5)
    torch.testing.assert_close(
        fashion.encode(clips).mean[:, :, :1], fashion.encode(clips[:, :, :1]).mean, rtol=1e-4, atol=1e-4
    )
