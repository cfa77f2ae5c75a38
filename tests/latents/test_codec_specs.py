"""Each row of the table of codec classes: frames, normalisation and tiling, against the class itself."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import reduce, repeat
from small_vaes import CASES, build
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused
from mmdit.latents.codec import Codec, load_codec
from mmdit.latents.codec_specs import SPECS

IMAGE_CASES = [case for case in CASES if SPECS[CASES[case][0].__name__].per_frame]
TILED_CASES = [case for case in CASES if SPECS[CASES[case][0].__name__].tile is not None]

# Shift and scale, latent = (raw - shift) / scale, as diffusers' pipelines of the class have them.
NORMALISED: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "ltx": lambda vae: (vae.latents_mean, vae.latents_std),
    "ltx with a decoding time": lambda vae: (vae.latents_mean, vae.latents_std / 0.5),
    "ltx that is not causal": lambda vae: (vae.latents_mean, vae.latents_std),
    "image": lambda vae: (0.3, 1 / 0.7),
    "image with channel statistics": lambda vae: ((0.1, 0.2, 0.3), (1 / 0.7, 2 / 0.7, 3 / 0.7)),
    "image with a temporal decoder": lambda vae: (0.0, 1 / 0.3),
    "cogvideox": lambda vae: (0.0, 1 / 0.7),
    "cogvideox of twos": lambda vae: (0.0, 1 / 0.7),
    "wan": lambda vae: ((0.1, 0.2, -0.3, 0.4), (1.0, 2.0, 3.0, 0.5)),
    "wan of twos": lambda vae: ((0.1, 0.2, -0.3, 0.4), (1.0, 2.0, 3.0, 0.5)),
    "wan with patches": lambda vae: ((0.1, 0.2, -0.3, 0.4), (1.0, 2.0, 3.0, 0.5)),
    "hunyuan": lambda vae: (0.0, 1 / 0.48),
    "dc": lambda vae: (0.0, 1 / 0.4),
}


def some_clips(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    return seeds.uniform((batch, 3, frames, height, width), 0, "clips", frames) * 2 - 1


def bare_encode(case: str, vae: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation by diffusers alone."""
    if case not in IMAGE_CASES:
        out = vae.encode(clips).latent_dist
        return out.mean, out.std
    outs = [vae.encode(frame) for frame in clips.unbind(2)]
    if case == "dc":
        mean = torch.stack([out.latent for out in outs], dim=2)
        return mean, torch.zeros_like(mean)
    mean, std = (torch.stack([getattr(out.latent_dist, name) for out in outs], dim=2) for name in ("mean", "std"))
    return mean, std


def bare_decode(case: str, vae: Any, raw: Tensor) -> Tensor:
    """Clips by diffusers alone, not clamped."""
    if case == "image with a temporal decoder":
        clips = [vae.decode(latent.transpose(0, 1), num_frames=raw.shape[2]).sample.transpose(0, 1) for latent in raw]
        return torch.stack(clips)
    if case in IMAGE_CASES:
        return torch.stack([vae.decode(latent).sample for latent in raw.unbind(2)], dim=2)
    options = {"temb": torch.zeros(len(raw))} if case == "ltx with a decoding time" else {}
    decoded: Tensor = vae.decode(raw, **options).sample
    return decoded


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_frames_comes_back_or_is_refused_with_the_nearest(case: str) -> None:
    codec = build(case)
    side = codec.space_factor * (2 if case in IMAGE_CASES else 1)
    allowed = [n for n in range(1, 41) if codec.nearest_frames(n) == n]
    also = range(codec.frame_step, 41, codec.frame_step) if case.startswith("cogvideox") else []
    assert allowed == sorted({*range(1, 41, codec.frame_step), *also})
    for n in range(1, 41):
        if n in allowed:
            grid = codec.latent_size((n, side, side))
            assert codec.clip_frames(grid[0]) == n
            latents = codec.encode(some_clips(n, side, side)).mean
            assert latents.shape[2:] == grid
            assert codec.decode(latents).shape == (1, 3, n, side, side)
        else:
            with pytest.raises(Refused, match=f"the nearest is {codec.nearest_frames(n)} frames of {side}x{side}"):
                codec.latent_size((n, side, side))


@pytest.mark.parametrize("case", [case for case in CASES if case not in IMAGE_CASES])
@torch.no_grad()
def test_what_is_refused_would_not_have_come_back(case: str) -> None:
    codec = build(case)
    side = codec.space_factor
    for n in range(2, 2 * codec.frame_step + 1):
        if codec.nearest_frames(n) == n:
            continue
        try:
            back = bare_decode(case, codec.vae, bare_encode(case, codec.vae, some_clips(n, side, side))[0]).shape[2]
        except RuntimeError:
            back = None
        assert back != n


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_normalisation_is_what_diffusers_says_it_is(case: str) -> None:
    codec = build(case)
    vae, space = codec.vae, codec.space_factor
    clips = some_clips(1 + codec.frame_step, 2 * space, 3 * space, batch=2)
    mean, std = bare_encode(case, vae, clips)
    shift, scale = (torch.as_tensor(part).reshape(-1, 1, 1, 1) for part in NORMALISED[case](vae))
    posterior = codec.encode(clips)
    torch.testing.assert_close(posterior.mean, (mean - shift) / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.std, std / scale, rtol=1e-4, atol=1e-5)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what the codec draws a decoder's noise by
        wanted = bare_decode(case, vae, mean).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(posterior.mean), wanted, rtol=1e-3, atol=1e-4)


# --- tiling ---


class Local(torch.nn.Module):
    """Stands for an encoder or decoder without any context: tiles of it must fit together exactly."""

    def __init__(self, codec: Codec, decodes: bool) -> None:
        super().__init__()
        config = codec.vae.config
        self.decodes, self.time, self.kind = decodes, codec.time_factor, type(codec.vae).__name__
        patch = config.get("patch_size") if self.kind == "AutoencoderKLWan" else None  # folded outside the network
        self.space = codec.space_factor // (patch or 1)
        moments = codec.channels * (1 if self.kind == "AutoencoderDC" else 2)
        channels = config.get("out_channels", 3) if decodes else moments
        self.weights = torch.nn.Parameter(torch.linspace(0.2, 0.8, channels))

    def forward(self, x: Tensor, *_: Any, first_chunk: bool = False, **__: Any) -> Any:
        mixed = x.mean(dim=1, keepdim=True) * self.weights.view(1, -1, *[1] * (x.ndim - 2))
        if not self.decodes:
            frames = mixed if x.ndim == 4 else mixed[:, :, :: self.time]
            out = reduce(frames, "b c ... (h a) (w e) -> b c ... h w", "mean", a=self.space, e=self.space)
        else:
            out = repeat(mixed, "b c ... h w -> b c ... (h a) (w e)", a=self.space, e=self.space)
            if x.ndim == 5:
                first = {"AutoencoderKLWan": first_chunk, "AutoencoderKLCogVideoX": x.shape[2] % 2 == 1}
                out = out.repeat_interleave(self.time, dim=2)[:, :, (self.time - 1) * first.get(self.kind, True) :]
        out = out.clone()  # blending writes into it
        return (out, None) if self.kind == "AutoencoderKLCogVideoX" else out


@pytest.mark.parametrize("case", TILED_CASES)
@pytest.mark.parametrize(("tall", "wide"), [(2.5, 3.25), (1.75, 1.0), (0.5, 2.75)])
def test_tiles_lie_in_their_place(case: str, tall: float, wide: float) -> None:
    codec = build(case)
    codec.vae.encoder, codec.vae.decoder = Local(codec, False), Local(codec, True)
    tile = 4 * codec.space_factor
    tiled = Codec(codec.vae, tiling=tile)
    for frames in (1, 1 + 2 * codec.frame_step):
        clips = some_clips(frames, *(round(part * 4) * codec.space_factor for part in (tall, wide)))
        untiled = codec.encode(clips)
        torch.testing.assert_close(tiled.encode(clips).mean, untiled.mean)
        torch.testing.assert_close(tiled.encode(clips).std, untiled.std)
        latents = torch.randn(untiled.mean.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(tiled.decode(latents), codec.decode(latents))


# The deviation of what tiles add to the latents of noise, as part of the latents' own. Random networks with norms or
# attention over the whole picture lose most.
TOLERANCE = {
    "ltx": 0.3,
    "ltx with a decoding time": 0.3,
    "ltx that is not causal": 0.3,
    "image": 0.5,
    "image with channel statistics": 0.5,
    "cogvideox": 0.75,
    "cogvideox of twos": 0.75,
    "wan": 0.2,
    "wan of twos": 0.2,
    "wan with patches": 0.05,
    "hunyuan": 0.45,
    "dc": 0.6,
}


@pytest.mark.parametrize("case", TILED_CASES)
def test_tiled_latents_are_about_the_untiled_ones(case: str) -> None:
    codec = build(case)
    tiled = Codec(codec.vae, tiling=8 * codec.space_factor)
    clips = some_clips(1 + codec.frame_step, 20 * codec.space_factor, 10 * codec.space_factor)
    one, other = tiled.encode(clips).mean, codec.encode(clips).mean
    allowed = TOLERANCE[case] * other.std()
    assert 0 < (one - other).std() < allowed
    assert (one.roll(1, dims=-1) - other).std() > allowed


@pytest.mark.parametrize("case", TILED_CASES)
def test_what_fits_into_a_tile_is_not_tiled(case: str) -> None:
    codec = build(case)
    tile = 4 * codec.space_factor
    tiled = Codec(codec.vae, tiling=tile)
    clips = some_clips(1, tile, tile)
    latents = codec.encode(clips).mean
    assert torch.equal(tiled.encode(clips).mean, latents)
    assert torch.equal(tiled.decode(latents), codec.decode(latents))


@pytest.mark.parametrize("case", CASES)
def test_tiling_is_said_as_a_store_writes_it_down(case: str, tmp_path: Any) -> None:
    codec = build(case)
    codec.vae.save_pretrained(tmp_path)
    assert load_codec(tmp_path).tiling is None
    step = 4 * codec.space_factor
    if case not in TILED_CASES:
        for tiling in (True, step):
            with pytest.raises(Refused, match=r"no tiling for this codec class, got AutoencoderKLTemporalDecoder"):
                load_codec(tmp_path, tiling=tiling)
        return
    tiled = load_codec(tmp_path, tiling=3 * step)
    assert tiled.fingerprint == codec.fingerprint
    assert json.loads(json.dumps(tiled.tiling)) == {"size": 3 * step, "overlap": 3 * codec.space_factor}
    assert tiled.untiled().tiling is None
    own = load_codec(tmp_path, tiling=True).tiling
    size = math.ceil(codec.spec.tile_size(codec.vae) / step) * step
    assert own == {"size": size, "overlap": size // 4}
    for wrong, nearest in ((3 * step + 1, 3 * step), (0, step), (-step, step), (step // 2 - 1, step)):
        with pytest.raises(Refused, match=f"got tiles of {wrong} pixels, expected a multiple of {step}; .*{nearest}$"):
            load_codec(tmp_path, tiling=wrong)


def test_codecs_that_share_a_model_tile_each_as_it_says() -> None:
    codec = build("image")
    tiled = Codec(codec.vae, tiling=8)
    clips = some_clips(1, 12, 12)
    first = codec.encode(clips).mean
    assert not torch.equal(tiled.encode(clips).mean, first)
    assert torch.equal(codec.encode(clips).mean, first)
    assert torch.equal(tiled.untiled().encode(clips).mean, first)
    assert not torch.equal(tiled.decode(first), codec.decode(first))
