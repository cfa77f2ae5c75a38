"""The codec's promises, over every diffusers class in the table, and over the one that comes with mmdit."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLMochi
from small_vaes import CASES, build
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused
from mmdit.latents.codec import Codec, Posterior, load_codec
from mmdit.latents.codec_files import fingerprint, shipped_codecs
from mmdit.latents.codec_specs import SPECS


def some_clips(codec: Codec, frames: int, batch: int = 2) -> Tensor:
    return seeds.uniform((batch, 3, frames, 2 * codec.space_factor, 3 * codec.space_factor), 0, "clips", frames) * 2 - 1


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def codec(case: str, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """Saved by diffusers and loaded by us."""
    folder = tmp_path_factory.mktemp("codec")
    build(case).vae.save_pretrained(folder)
    return load_codec(folder)


def test_every_class_in_the_table_is_tested() -> None:
    assert {kind.__name__ for kind, _ in CASES.values()} == set(SPECS)


def test_as_many_frames_come_back_as_went_in(codec: Codec) -> None:
    for frames in (1, 1 + codec.frame_step, 1 + 2 * codec.frame_step):
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


def test_whether_an_image_has_the_latent_of_its_clips_first_frame_is_said(case: str, codec: Codec) -> None:
    assert codec.image_is_first_frame == (not case.startswith(("cogvideox", "hunyuan", "ltx that is not")))
    clips = some_clips(codec, 1 + 2 * codec.frame_step)
    clip, image = codec.encode(clips), codec.encode(clips[:, :, :1])
    for one, other in ((clip.mean, image.mean), (clip.std, image.std)):
        if codec.image_is_first_frame:
            torch.testing.assert_close(one[:, :, :1], other, rtol=1e-4, atol=1e-5)
        else:
            assert not torch.allclose(one[:, :, :1], other, rtol=1e-2, atol=1e-2)


def test_where_it_has_it_no_latent_depends_on_later_frames(codec: Codec) -> None:
    clips = some_clips(codec, 1 + 2 * codec.frame_step)
    other = clips.clone()
    other[:, :, 1 + codec.frame_step :] *= -1
    one, two = codec.encode(clips).mean, codec.encode(other).mean
    kept = codec.frame_step // codec.time_factor + 1
    assert not torch.allclose(one[:, :, kept:], two[:, :, kept:], rtol=1e-3, atol=1e-3)
    if codec.image_is_first_frame:
        torch.testing.assert_close(one[:, :, :kept], two[:, :, :kept], rtol=1e-4, atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch(codec: Codec) -> None:
    clips = some_clips(codec, 1 + codec.frame_step, batch=3)
    together = codec.encode(clips).mean
    alone = torch.cat([codec.encode(clip[None]).mean for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        codec.decode(together), torch.cat([codec.decode(latent[None]) for latent in together]), rtol=1e-3, atol=1e-4
    )


def test_a_decoder_with_noise_of_its_own_draws_the_same_each_time() -> None:
    codec = build("ltx with a decoding time")
    latents = codec.encode(some_clips(codec, 3)).mean
    bare = [codec.vae.decode(latents, temb=torch.zeros(2)).sample for _ in range(2)]
    assert not torch.equal(*bare)
    state = torch.random.get_rng_state()
    assert torch.equal(codec.decode(latents), codec.decode(latents))
    assert torch.equal(torch.random.get_rng_state(), state)


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
    assert [build("ltx").nearest_frames(n) for n in (0, 1, 2, 3, 16, 17)] == [1, 1, 1, 3, 15, 17]
    assert [build("cogvideox").nearest_frames(n) for n in (0, 1, 7, 8, 9, 13, 16, 17)] == [1, 1, 1, 8, 9, 9, 16, 17]
    assert [build("cogvideox").clip_frames(n) for n in (1, 2, 3, 4, 5)] == [1, 8, 9, 16, 17]


def test_what_are_not_clips_or_latents_is_refused() -> None:
    codec = build("ltx")
    for wrong in (torch.zeros(3, 1, 8, 8), torch.zeros(1, 4, 1, 8, 8)):
        with pytest.raises(Refused, match="not clips"):
            codec.encode(wrong)
    for wrong in (torch.zeros(4, 1, 1, 1), torch.zeros(1, 3, 1, 1, 1)):
        with pytest.raises(Refused, match="not latents"):
            codec.decode(wrong)


def test_a_latent_that_no_clip_has_is_refused() -> None:
    codec = build("wan of twos")
    with pytest.raises(Refused, match="no clip has so many latent frames, got 2, expected such as 1 \\(1 frames\\)"):
        codec.decode(torch.zeros(1, codec.channels, 2, 1, 1))
    assert codec.decode(torch.zeros(1, codec.channels, 3, 1, 1)).shape == (1, 3, 5, 8, 8)


def test_a_config_that_does_not_fit_its_network_is_refused() -> None:
    codec = build("wan", config={"scale_factor_spatial": 16})
    with pytest.raises(Refused, match="got 1 frames of 4x4, expected 1 frames of 2x2 by the config"):
        codec.encode(torch.zeros(1, 3, 1, 32, 32))
    with pytest.raises(Refused, match="got 1 frames of 16x16, expected 1 frames of 32x32 by the config"):
        codec.decode(torch.zeros(1, codec.channels, 1, 2, 2))


# --- loading ---


def test_a_saved_codec_loads_the_same(case: str, tmp_path: Path) -> None:
    built = build(case)
    built.vae.save_pretrained(tmp_path / "pipeline" / "vae")
    clips = some_clips(built, 1 + built.frame_step)
    mean = built.encode(clips).mean
    for folder in (tmp_path / "pipeline" / "vae", tmp_path / "pipeline"):
        again = load_codec(folder)
        assert torch.equal(again.encode(clips).mean, mean)
        assert torch.equal(again.decode(mean), built.decode(mean))
        assert again.fingerprint == built.fingerprint


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


def test_a_narrower_type_gives_about_the_same_in_float32(case: str, codec: Codec, tmp_path: Path) -> None:
    build(case).vae.save_pretrained(tmp_path)
    narrow = load_codec(tmp_path, dtype=torch.bfloat16)
    clips = some_clips(codec, 1 + codec.frame_step)
    wide, latents = codec.encode(clips), narrow.encode(clips)
    assert latents.mean.dtype == latents.std.dtype == narrow.decode(latents.mean).dtype == torch.float32
    for one, other in ((latents.mean, wide.mean), (latents.std, wide.std)):
        assert (one - other).abs().mean() <= 0.02 * other.abs().mean()
    pixels, wanted = narrow.decode(wide.mean), codec.decode(wide.mean)
    if case != "ltx with a decoding time":  # each type draws noise of its own
        assert (pixels - wanted).abs().mean() < 0.06 * wanted.abs().mean()


def test_refused_by_name_or_class(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such codec, got fasion, expected one of fashion"):
        load_codec("fasion")
    with pytest.raises(Refused, match=r"config\.json"):
        load_codec(tmp_path)
    other = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32), latent_channels=4,
        layers_per_block=(1, 1, 1, 1, 1), latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4,
    )  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(Refused, match=r"does not know this codec class, .*AutoencoderKLMochi"):
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
