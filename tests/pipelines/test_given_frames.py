"""Given frames in a pipeline: what is given is held, encoded by the codec's rule, and refused where nothing fits."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from small_vaes import CASES, build
from torch import Tensor

from mmdit import seeds
from mmdit.conditioning.frames import GIVEN
from mmdit.diffusion import GaussianDiffusion, RectifiedFlow, samplers_for
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.given_frames import GivenFrames, Held, encode_held, plan_held
from mmdit.pipelines.noise import Draws
from mmdit.pipelines.pixels import fit, read_image, read_video
from mmdit.pipelines.windows import Windows
from mmdit.training.build import describe_process

ALL = list(GIVEN)
ASK: dict[str, Any] = {"label": "coat", "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> ClipPipeline:
    made: ClipPipeline = tiny.make_pipeline(text=False, given_frames=ALL)
    return made


def picture(number: int = 0, height: int = 16, width: int = 32) -> np.ndarray[Any, Any]:
    """Smooth, (height, width, 3) uint8."""
    coarse = seeds.uniform((1, 3, 4, 4), number, "picture")
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth[0].permute(1, 2, 0) * 255).byte().numpy()


def latent_of(pipeline: ClipPipeline, image: np.ndarray[Any, Any]) -> Tensor:
    return pipeline.codec.encode(read_image(image)[None]).mean[0, :, 0]


PROCESSES = [
    (process, name)
    for process in (RectifiedFlow(shift=3.0), GaussianDiffusion(variance="fixed_small"))
    for name in samplers_for(process)
]


@pytest.mark.parametrize(("process", "sampler"), PROCESSES, ids=str)
def test_a_first_frame_is_held_by_every_sampler(process: Any, sampler: str) -> None:
    pipeline = tiny.make_pipeline(text=False, given_frames=["first"])
    pipeline.register_to_config(process=describe_process(process))
    pipeline.use_sampler(sampler)
    ask: dict[str, Any] = {"label": "coat", "num_inference_steps": 3}
    made = {output: pipeline(**ask, image=picture(), output_type=output).frames for output in ("latent", "pt")}
    latent = latent_of(pipeline, picture())
    assert torch.equal(made["latent"][0, :, 0], latent)
    own = pipeline.codec.decode(latent[None, :, None])
    torch.testing.assert_close(made["pt"][:, :, :1], own, atol=1e-5, rtol=0)
    free = pipeline(**ask, output_type="latent").frames
    assert not torch.allclose(made["latent"][0, :, 1:], free[0, :, 1:], atol=1e-2)


def test_every_form_of_a_picture_is_the_same_picture(pipeline: ClipPipeline) -> None:
    array = picture()
    clip = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    alpha = np.concatenate([array, np.full((16, 32, 1), 255, np.uint8)], axis=2)
    for form in (Image.fromarray(array), Image.fromarray(alpha), array, array.astype(np.float32) / 255, clip):
        torch.testing.assert_close(read_image(form)[:, 0], clip, atol=1e-6, rtol=0)
    deep = array[..., 0].astype(np.uint16) * 257
    wanted = torch.from_numpy(array[..., 0].astype(np.float32)).expand(3, 16, 32) / 127.5 - 1
    torch.testing.assert_close(read_image(Image.fromarray(deep))[:, 0], wanted, atol=1e-6, rtol=0)
    for unclear in (deep.astype(np.int32), deep.astype(np.float32)):
        with pytest.raises(Refused, match="only 8 and 16 bits"):
            read_image(Image.fromarray(unclear))
    video = np.stack([picture(number) for number in range(3)])
    forms: list[Any] = [list(video), [Image.fromarray(frame) for frame in video], read_video(video)]
    for form in forms:
        torch.testing.assert_close(read_video(form), read_video(video), atol=1e-6, rtol=0)


def test_pictures_cover_the_clip_and_are_cut_at_the_centre() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(3, 1, 16, 64)
    assert torch.equal(fit(ramp, (16, 32)), ramp[..., 16:48])
    assert torch.equal(fit(ramp, (16, 64)), ramp)
    half = fit(ramp, (8, 16))
    assert half.shape == (3, 1, 8, 16)
    torch.testing.assert_close(half[0, 0, 0], ramp[0, 0, 0, 16:48].view(16, 2).mean(1), atol=1e-3, rtol=0)
    assert fit(ramp, (40, 40)).shape == (3, 1, 40, 40)


def test_last_both_a_clip_and_latents_are_held(pipeline: ClipPipeline) -> None:
    first, last = latent_of(pipeline, picture(1)), latent_of(pipeline, picture(2))
    ask: dict[str, Any] = {**ASK, "output_type": "latent"}
    made = pipeline(**ask, last_image=picture(2)).frames[0]
    assert torch.equal(made[:, 2], last)
    both = pipeline(**ask, image=picture(1), last_image=picture(2)).frames[0]
    assert torch.equal(both[:, 0], first)
    assert torch.equal(both[:, 2], last)
    by_number = pipeline(**ask, given={0: first, -1: last}).frames[0]
    assert torch.equal(by_number, both)
    latents = torch.full((4, 3, 2, 4), torch.nan)
    latents[:, 0], latents[:, 2] = first, last
    assert torch.equal(pipeline(**ask, given=(torch.tensor([True, False, True]), latents)).frames[0], both)


def test_a_clip_begins_with_the_end_of_another(pipeline: ClipPipeline) -> None:
    video = np.stack([picture(number) for number in range(5)])
    made = pipeline(**ASK, video=video, overlap=2, output_type="latent").frames[0]
    for number in (0, 1):
        torch.testing.assert_close(made[:, number], latent_of(pipeline, video[3 + number]), atol=1e-5, rtol=0)
    one = pipeline(**ASK, video=video[:1], overlap=2, output_type="latent").frames[0]
    assert torch.equal(one[:, 0], latent_of(pipeline, video[0]))


def test_one_for_all_or_one_each(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"label": ["coat", "dress"], "num_inference_steps": 1, "output_type": "latent"}
    made = pipeline(**ask, image=[picture(1), picture(2)], num_clips_per_prompt=2, batch_size=3).frames
    wanted = [latent_of(pipeline, picture(number)) for number in (1, 1, 2, 2)]
    assert torch.equal(made[:, :, 0], torch.stack(wanted))
    shared = pipeline(**ask, image=picture(1)).frames
    assert torch.equal(shared[1, :, 0], wanted[0])


def test_a_clip_with_a_given_frame_is_the_same_in_any_batch(pipeline: ClipPipeline) -> None:
    images = [picture(number) for number in range(3)]
    ask: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 7, "seed": 3, "output_type": "pt"}
    together = pipeline(label=["coat"] * 3, image=images, batch_size=3, **ask).frames
    alone = pipeline(label="coat", image=images[1], first_index=1, **ask).frames
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=0)


def test_image_guidance_changes_what_is_not_given(pipeline: ClipPipeline) -> None:
    """One Euler step is linear in the scale."""
    ask: dict[str, Any] = {**ASK, "num_inference_steps": 1, "image": picture(), "output_type": "latent"}
    made = {scale: pipeline(**ask, image_guidance_scale=scale).frames[0, :, 1:] for scale in (0, 1, 3)}
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    torch.testing.assert_close(made[3], made[1] + 2 * (made[1] - made[0]), atol=1e-4, rtol=0)


def test_each_window_has_noise_of_its_own(pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, plain = list[Tensor](), Draws.noise

    def drawing(self: Draws, *args: Any) -> Tensor:
        drawn.append(plain(self, *args))
        return drawn[-1]

    monkeypatch.setattr(Draws, "noise", drawing)
    pipeline(label="coat", num_inference_steps=1, num_frames=7, output_type="latent")
    assert len(drawn) == 3
    assert all(not torch.equal(drawn[one], drawn[other]) for one in range(3) for other in range(one))


def test_a_long_clip_is_made_in_windows_that_go_on(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"label": ["coat", "dress"], "num_inference_steps": 2, "seed": 4}
    steps: list[tuple[int, int]] = []
    long = pipeline(**ask, num_frames=9, image=picture(), output_type="latent", progress=lambda *x: steps.append(x))
    assert long.frames.shape == (2, 4, 9, 2, 4)
    assert steps == [(number, 8) for number in range(1, 9)]  # four windows of two steps
    short = pipeline(**ask, image=picture(), output_type="latent").frames
    assert torch.equal(long.frames[:, :, :3], short)
    assert not torch.allclose(long.frames[:, :, 3:5], short[:, :, 1:], atol=1e-2)  # other noise in each window
    decoded = pipeline(**ask, num_frames=9, image=picture(), output_type="pt").frames
    torch.testing.assert_close(decoded, pipeline.codec.decode(long.frames), atol=1e-4, rtol=0)


def test_a_network_that_does_not_go_on_makes_long_clips_at_once() -> None:
    pipeline = tiny.make_pipeline(text=False)
    steps: list[int] = []
    pipeline(**ASK, num_frames=9, progress=lambda done, of: steps.append(of))
    assert set(steps) == {2}


def test_the_kinds_are_saved_with_the_pipeline(tmp_path: Any) -> None:
    tiny.make_pipeline(text=False, given_frames=["first", "both"]).save_pretrained(tmp_path / "saved")
    again = ClipPipeline.from_pretrained(tmp_path / "saved")
    assert list(again.config.given_frames) == ["first", "both"]


def nan(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"image": "photo.jpg"}, "not a picture"),
    ({"image": np.zeros((16, 32), np.uint8)}, "not a picture"),
    ({"image": np.zeros((16, 32, 4), np.uint8)}, "not a clip"),
    ({"image": np.full((16, 32, 3), 2.0)}, "out of range"),
    ({"image": nan(3, 16, 32)}, "out of range"),
    ({"image": [picture()] * 3}, "got 3, expected 1 or 1"),
    ({"image": picture(), "video": [picture()]}, "an image and a video"),
    ({"video": []}, "got 0"),
    ({"video": [picture(), picture(height=8)]}, "not a clip"),
    ({"given": {3: torch.zeros(4, 2, 4)}}, "no such latent frame"),
    ({"given": {0: torch.zeros(4, 2, 3)}}, "not a latent frame"),
    ({"given": torch.zeros(4)}, "not given latents"),
    ({"given": {}}, "not trained"),
    ({"image": picture(), "num_frames": 1}, "none is left"),
    ({"given": {0: torch.zeros(4, 2, 4), 1: torch.zeros(4, 2, 4)}, "last_image": picture()}, "none is left"),
    ({"last_image": picture(), "num_frames": 9}, "need one window"),
    ({"image": picture(), "image_guidance_scale": -1.0}, "image guidance scale"),
    ({"image_guidance_scale": 2.0}, "image guidance without"),
    ({"image": picture(), "overlap": 0}, "overlap"),
    ({"num_frames": 9, "window_frames": -1}, "length of a window"),
]


@pytest.mark.parametrize(("ask", "said"), REFUSALS)
def test_refusals_come_before_any_work(
    pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch, ask: dict[str, Any], said: str
) -> None:
    tiny.forbid_work(pipeline, monkeypatch)
    with pytest.raises(Refused) as refusal:
        pipeline(label="coat", **ask)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_was_not_trained_is_refused_unless_insisted_on() -> None:
    for kinds, ask in (((), {"image": picture()}), (("first",), {"last_image": picture()})):
        pipeline = tiny.make_pipeline(text=False, given_frames=kinds)
        with pytest.raises(Refused, match="not trained with such given frames"):
            pipeline(**ASK, **ask)
        assert pipeline(**ASK, **ask, force_given=True).frames.shape == (1, 3, 16, 32, 3)


def plan_and_encode(codec: Codec, asked: GivenFrames, windows: Windows, patch: int = 1) -> tuple[Held, Tensor]:
    held = plan_held(
        asked, codec, patch, windows, conditions=1, overlap=None, trained=ALL, force=False
    )  # fmt: skip
    assert held is not None
    given = encode_held(codec, held, windows, patch, torch.device("cpu"))
    assert torch.equal(given.mask[0], held[0].mask)
    return held[0], given.latents[0]


@pytest.fixture(params=CASES)
def codec(request: pytest.FixtureRequest) -> Codec:
    return build(str(request.param))


def test_each_codec_encodes_a_picture_by_its_rule(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    side = 2 * codec.space_factor
    length = 1 + 2 * codec.frame_step
    windows = Windows(length, length, codec.latent_size((length, side, side)))
    image = read_image(picture(0, side, side))
    still = codec.encode(image.expand(-1, length, -1, -1)[None]).mean[0]
    _, first = plan_and_encode(codec, GivenFrames(image=image[:, 0]), windows)
    torch.testing.assert_close(first[:, 0], still[:, 0], atol=2e-4, rtol=1e-3)
    assert ("stands still" in caplog.text) == (not codec.image_is_first_frame)
    caplog.clear()
    _, last = plan_and_encode(codec, GivenFrames(last_image=image[:, 0]), windows)
    torch.testing.assert_close(last[:, -1], still[:, -1], atol=2e-4, rtol=1e-3)
    assert ("stands still" in caplog.text) == (codec.time_factor > 1)


def test_each_codec_gives_the_end_of_a_clip_as_a_beginning(codec: Codec) -> None:
    side = 2 * codec.space_factor
    length = 1 + 6 * codec.frame_step
    windows = Windows(length, length, codec.latent_size((length, side, side)))
    video = read_video(np.stack([picture(number, side, side) for number in range(length + 2)]))
    held, latents = plan_and_encode(codec, GivenFrames(video=video), windows)
    count = int(held.mask.sum())
    frames = codec.clip_frames(count) if codec.time_factor > 1 else count
    assert held.mask.tolist() == [True] * count + [False] * (windows.grid[0] - count)
    assert 0 < count <= windows.grid[0] // 3
    end = codec.encode(video[None, :, -held.pixels["video"].shape[1] :]).mean[0]
    assert held.pixels["video"].shape[1] <= frames
    torch.testing.assert_close(latents[:, :count], end)


def test_frames_that_share_a_patch_are_given_together() -> None:
    codec = build("image")
    windows = Windows(6, 6, (6, 4, 4))
    held, latents = plan_and_encode(codec, GivenFrames(image=picture(0, 8, 8)), windows, patch=2)
    assert held.mask.tolist() == [True, True, False, False, False, False]
    torch.testing.assert_close(latents[:, 0], latents[:, 1])
    with pytest.raises(Refused, match="not trained with such"):
        plan_and_encode(codec, GivenFrames(latents={0: torch.zeros(3, 4, 4)}), windows, patch=2)
