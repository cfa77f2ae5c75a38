"""The fidelity check: its figures, its refusals, and wrong tiles that it must find."""

import math
from typing import Any

import pytest
import torch
from small_vaes import build
from torch import Tensor

from mmdit.clips.made import render
from mmdit.clips.plan import plan_clips
from mmdit.clips.video import frames_to_clip
from mmdit.errors import Refused
from mmdit.latents.codec import Codec, Posterior, load_codec
from mmdit.latents.fidelity import PROBE_FRAMES, check_fidelity, psnr, worst_line_psnr

FLOOR = 22.0
"""Between what the shipped codec reaches on the probe with right tiles (agreement 31 dB) and with wrong ones."""


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.stack([frames_to_clip(render(clip, (128, 96), 3)) for clip in plan_clips(2, 0)])


@pytest.fixture
def tiled() -> Codec:
    """The shipped codec with tiles of 64: two by two of them on the probe."""
    return load_codec("fashion", tiling=64)


def test_psnr_is_that_of_the_peak_to_the_mean_squared_error_of_each_clip() -> None:
    clips = torch.zeros(3, 3, 2, 4, 6)
    others = torch.stack([clips[0], clips[1] + 0.02, clips[2] - 2])
    assert psnr(clips, others).tolist() == pytest.approx([106.02, 40.0, 0.0], abs=0.01)
    others[0, :, :, 3] = 0.2  # a quarter of the rows
    assert psnr(clips, others)[0].item() == pytest.approx(20 + 10 * math.log10(4), abs=0.01)
    assert worst_line_psnr(clips, others).tolist() == pytest.approx([20.0, 40.0, 0.0], abs=0.01)
    others[0] = 0
    others[0, :, :, :, 5] = 0.2
    assert worst_line_psnr(clips, others)[0].item() == pytest.approx(20.0, abs=0.01)


def test_the_figures_are_of_the_worst_clip(clips: Tensor, tiled: Codec) -> None:
    untiled = tiled.untiled()
    plain = check_fidelity(untiled, clips, floor=0)
    again = untiled.decode(untiled.encode(clips).mean)
    assert plain.psnr == pytest.approx(psnr(again, clips).min().item(), abs=1e-3)
    assert (plain.tiled, plain.untiled, plain.agreement) == (None, None, None)
    found = check_fidelity(tiled, clips, floor=FLOOR)
    assert found.untiled == plain.psnr and found.tiled == found.psnr
    with_tiles = tiled.decode(tiled.encode(clips).mean)
    assert found.psnr == pytest.approx(psnr(with_tiles, clips).min().item(), abs=1e-3)
    assert found.agreement == pytest.approx(worst_line_psnr(with_tiles, again).min().item(), abs=1e-3)
    assert found.agreement is not None and found.agreement > FLOOR + 3


def test_below_the_floor_is_refused_with_both_numbers(clips: Tensor, tiled: Codec) -> None:
    reached = check_fidelity(tiled.untiled(), clips, floor=0).psnr
    assert check_fidelity(tiled.untiled(), clips, floor=reached - 0.01).psnr == reached
    with pytest.raises(Refused, match=f"got {reached:.1f} dB PSNR, expected at least {reached + 0.01:g} dB"):
        check_fidelity(tiled.untiled(), clips, floor=reached + 0.01)
    agreement = check_fidelity(tiled, clips, floor=FLOOR).agreement
    assert agreement is not None
    with pytest.raises(Refused, match=rf"tiling changes .* got {agreement:.1f} dB .* at least {agreement + 1:g} dB; "):
        check_fidelity(tiled, clips, floor=FLOOR, tiling_floor=agreement + 1)


def test_latents_that_are_no_numbers_are_refused(clips: Tensor, tiled: Codec) -> None:
    next(tiled.vae.decoder.parameters()).data.fill_(math.nan)
    for codec, what in ((tiled, "tiling changes"), (tiled.untiled(), "the codec does not give")):
        with pytest.raises(Refused, match=f"{what} .* got nan dB"):
            check_fidelity(codec, clips, floor=FLOOR)


def _no_blending(_: Tensor, tile: Tensor, extent: int) -> Tensor:
    return tile


def _black_edge(_: Tensor, tile: Tensor, extent: int) -> Tensor:
    tile = tile.clone()
    tile[..., :1] = 0
    return tile


def _one_aside(_: Tensor, tile: Tensor, extent: int) -> Tensor:
    return tile.roll(1, dims=-1)


@pytest.mark.parametrize("fault", [_no_blending, _black_edge, _one_aside])
def test_wrong_tiles_are_refused(fault: Any, clips: Tensor, tiled: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled.vae, "blend_h", fault)
    with pytest.raises(Refused, match=r"tiling changes what the codec gives back, .* expected at least 22 dB; encode"):
        check_fidelity(tiled, clips, floor=FLOOR)


@pytest.mark.parametrize("name", ["tiled_encode", "tiled_decode"])
def test_a_wrong_tile_in_the_encoder_or_the_decoder_alone_is_refused(
    name: str, clips: Tensor, tiled: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(tiled.vae, name)

    def wrong(*args: Any, **options: Any) -> Any:
        out = right(*args, **options)
        part = out if isinstance(out, Tensor) else out.sample
        part[..., -part.shape[-1] // 12 :] *= -1  # one latent cell at the right edge
        return out

    monkeypatch.setattr(tiled.vae, name, wrong)
    with pytest.raises(Refused, match="tiling changes what the codec gives back"):
        check_fidelity(tiled, clips, floor=FLOOR)


def test_a_picture_of_one_tile_needs_no_comparison(clips: Tensor) -> None:
    codec = load_codec("fashion", tiling=128)
    assert check_fidelity(codec, clips, floor=FLOOR).agreement is None


def test_the_comparison_is_bounded_and_its_last_tile_is_that_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = build("image", tiling=8)  # stride 6
    untiled, seen = codec.untiled(), list[Tensor]()
    encode = untiled.encode

    def watched(clips: Tensor) -> Posterior:
        seen.append(clips)
        return encode(clips)

    monkeypatch.setattr(untiled, "encode", watched)
    monkeypatch.setattr(codec, "untiled", lambda: untiled)
    clips = torch.zeros(1, 3, 30, 10, 60)
    clips[..., 26:34] = 1
    check_fidelity(codec, clips, floor=-100)
    assert seen[0].shape == (1, 3, PROBE_FRAMES, 10, 12)  # 60 less eight strides
    assert (seen[0] == 1).float().mean() == 8 / 12  # from the middle


def test_a_size_that_the_codec_does_not_take_is_refused(tiled: Codec) -> None:
    for size in ((16, 64, 48), (17, 60, 48)):
        with pytest.raises(Refused, match="the nearest is"):
            check_fidelity(tiled, torch.zeros(1, 3, *size), floor=0)
