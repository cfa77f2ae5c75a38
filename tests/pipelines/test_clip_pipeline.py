"""ClipPipeline's promises, on a tiny random network and codec."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import EulerAncestralDiscreteScheduler

from mmdit import seeds
from mmdit.diffusion import Projection, RectifiedFlow, samplers_for
from mmdit.errors import Refused
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.noise import plan_draws

PROMPTS = ["a red coat", "a blue dress", "red", "blue", "coat", "dress", "a coat turning", ""]


@pytest.fixture(scope="module")
def pipeline() -> ClipPipeline:
    made: ClipPipeline = tiny.make_pipeline()
    return made


def counted(pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each pass through the network."""
    passes: list[int] = []
    forward = pipeline.transformer.forward

    def counting(latents: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        passes.append(len(latents))
        result: torch.Tensor = forward(latents, *args, **kwargs)
        return result

    monkeypatch.setattr(pipeline.transformer, "forward", counting)
    return passes


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_a_clip_is_the_same_in_a_batch_of_one_and_of_eight(pipeline: ClipPipeline, output_type: str) -> None:
    together = pipeline(PROMPTS, "dress", batch_size=8, output_type=output_type, seed=7).frames
    for index in (0, 5):
        alone = pipeline(
            PROMPTS[index], "dress", first_index=index, batch_size=1, output_type=output_type, seed=7
        ).frames
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)
    parts = pipeline(PROMPTS, "dress", batch_size=3, output_type=output_type, seed=7).frames
    torch.testing.assert_close(parts, together, atol=1e-5, rtol=0)


def test_a_vae_that_was_told_to_tile_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.make_pipeline()
    before = pipeline.codec.tiling
    pipeline.vae.enable_tiling()
    assert (before, pipeline.codec.tiling) == (None, {"size": 32, "overlap": 8})
    calls, tiled = list[int](), pipeline.vae.tiled_decode

    def counted(latents: torch.Tensor, **options: Any) -> Any:
        calls.append(len(latents))
        return tiled(latents, **options)

    monkeypatch.setattr(pipeline.vae, "tiled_decode", counted)
    pipeline("a red coat", 0, num_frames=3, height=48, width=64, num_inference_steps=1)
    assert calls


def test_a_seed_decides_and_the_same_call_gives_the_same_bits(pipeline: ClipPipeline) -> None:
    first = pipeline("a red coat", output_type="latent", seed=1).frames
    assert torch.equal(pipeline("a red coat", output_type="latent", seed=1).frames, first)
    assert not torch.allclose(pipeline("a red coat", output_type="latent", seed=2).frames, first, atol=0.1)
    assert not torch.allclose(
        pipeline("a red coat", output_type="latent", seed=1, first_index=1).frames, first, atol=0.1
    )


def test_prompt_and_label_both_matter(pipeline: ClipPipeline) -> None:
    calls: list[dict[str, Any]] = [
        {"prompt": "red"}, {"prompt": "blue"}, {"prompt": "red", "label": "coat"}, {"prompt": "red", "label": "dress"},
        {"label": "coat"}, {"prompt": ""},
    ]  # fmt: skip
    made = [pipeline(**call, output_type="latent").frames for call in calls]
    for one in range(len(made)):
        for other in range(one):
            assert not torch.allclose(made[one], made[other], atol=1e-3), (calls[one], calls[other])
    no_label = pipeline(prompt=["", "red"], label=None, output_type="latent").frames
    torch.testing.assert_close(no_label[0], made[5][0], atol=1e-5, rtol=0)


def test_guidance_follows_its_rule_against_the_null_condition(pipeline: ClipPipeline) -> None:
    """One Euler step from t = 1 to 0 is x - v, so the guided result is linear in the scale."""
    ask: dict[str, Any] = {"prompt": "a red coat", "label": "coat", "num_inference_steps": 1, "output_type": "latent"}
    with_scale = {scale: pipeline(**ask, guidance_scale=scale).frames for scale in (0, 1, 3.5)}
    null = pipeline(**{**ask, "prompt": "", "label": None}, guidance_scale=1).frames
    torch.testing.assert_close(with_scale[0], null, atol=1e-5, rtol=0)
    wanted = null + 3.5 * (with_scale[1] - null)
    torch.testing.assert_close(with_scale[3.5], wanted, atol=1e-4, rtol=0)


def test_rescaled_and_projected_guidance(pipeline: ClipPipeline) -> None:
    """One Euler step from t = 1 to 0 ends at the data that the prediction stands for."""
    ask: dict[str, Any] = {"prompt": "a red coat", "label": "coat", "num_inference_steps": 1, "output_type": "latent"}
    ask = {**ask, "guidance_scale": 4}
    plain, conditional = pipeline(**ask).frames, pipeline(**{**ask, "guidance_scale": 1}).frames
    noise = plan_draws(0, 0, None, 1).noise(slice(0, 1), 0, tuple(plain.shape[1:]), plain.device)
    rescaled = noise - pipeline(**ask, guidance_rescale=1.0).frames
    torch.testing.assert_close(rescaled.std(), (noise - conditional).std(), atol=1e-5, rtol=0)
    whole = pipeline(**ask, guidance_projection=Projection(parallel=1.0)).frames
    torch.testing.assert_close(whole, plain, atol=1e-4, rtol=0)
    moved = pipeline(**ask, guidance_projection=Projection(parallel=0.0)).frames - conditional
    assert moved.norm() > 0.01
    assert abs((moved * conditional).sum()) < 1e-4 * moved.norm() * conditional.norm()


def test_guidance_is_one_doubled_batch_and_none_costs_no_second_pass(
    pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted(pipeline, monkeypatch)
    pipeline(PROMPTS[:3], num_inference_steps=2, guidance_scale=2, output_type="latent")
    assert passes == [6, 6]
    passes.clear()
    pipeline(PROMPTS[:3], num_inference_steps=2, guidance_scale=1, output_type="latent")
    assert passes == [3, 3]


def test_output_types(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"prompt": ["red", "blue"], "num_inference_steps": 2}
    tensor = pipeline(**ask, output_type="pt").frames
    assert tensor.shape == (2, 3, 3, 16, 32)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    array = pipeline(**ask, output_type="np").frames
    assert array.shape == (2, 3, 16, 32, 3)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, (tensor.permute(0, 2, 3, 4, 1).numpy() + 1) / 2, atol=1e-6)
    pictures = pipeline(**ask, output_type="pil").frames
    assert [len(clip) for clip in pictures] == [3, 3]
    np.testing.assert_array_equal(np.asarray(pictures[1][2]), np.rint(array[1, 2] * 255).astype(np.uint8))
    latents = pipeline(**ask, output_type="latent").frames
    assert latents.shape == (2, 4, 3, 2, 4)
    assert torch.equal(pipeline.codec.decode(latents), tensor)
    assert torch.equal(pipeline(**ask, output_type="pt", return_dict=False)[0], tensor)


def test_images_and_other_sizes(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"prompt": "red", "num_inference_steps": 1, "output_type": "pt"}
    assert pipeline(**ask, num_frames=1).frames.shape == (1, 3, 1, 16, 32)
    assert pipeline(**ask, num_frames=7, height=24, width=16).frames.shape == (1, 3, 7, 24, 16)


def test_numbers_and_texts_of_numpy_are_numbers_and_texts(pipeline: ClipPipeline) -> None:
    plain = pipeline(["red", "blue"], seed=[3, 4], first_index=2, num_inference_steps=1).frames
    other = pipeline(np.array(["red", "blue"]), seed=np.array([3, 4]), first_index=np.int64(2), num_inference_steps=1)
    np.testing.assert_array_equal(plain, other.frames)
    assert type(plan_draws(np.int64(3), 0, None, 2).places[1][0]) is int


def test_several_clips_a_prompt_stand_side_by_side(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    several = pipeline(["red", "blue"], ["coat", "dress"], num_clips_per_prompt=2, **ask).frames
    pairs = pipeline(["red", "red", "blue", "blue"], ["coat", "coat", "dress", "dress"], **ask).frames
    assert torch.equal(several, pairs)


def test_generators_take_the_place_of_the_seed(pipeline: ClipPipeline) -> None:
    def new(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    ask: dict[str, Any] = {"prompt": ["red", "red"], "num_inference_steps": 1, "output_type": "latent"}
    one = pipeline(**ask, generator=new(3)).frames
    listed = pipeline(**ask, generator=[new(3), new(3)]).frames
    assert torch.equal(one[0], listed[0])
    assert torch.equal(listed[0], listed[1])
    assert not torch.allclose(one[0], one[1])


def test_the_noise_of_a_clip_is_its_own() -> None:
    draws = plan_draws(5, 10, None, clips=4)
    noise = draws.noise(slice(2, 4), 0, (4, 3, 2, 4), torch.device("cpu"))
    assert torch.equal(noise[1], seeds.normal((4, 3, 2, 4), 5, "sample", 13))


@pytest.mark.parametrize("name", samplers_for(RectifiedFlow()))
def test_every_sampler_of_flow_makes_clips_that_do_not_see_their_batch(name: str) -> None:
    pipeline = tiny.make_pipeline()
    before = pipeline.scheduler.config.shift
    pipeline.use_sampler(name)
    config = pipeline.scheduler.config
    assert (config.get("flow_shift") or config.get("shift")) == before
    together = pipeline(["a red coat"] * 3, seed=5, num_inference_steps=3, output_type="latent").frames
    alone = pipeline("a red coat", seed=5, first_index=1, num_inference_steps=3, output_type="latent").frames
    assert together.isfinite().all()
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_a_users_scheduler_that_draws_noise_draws_it_by_the_seed() -> None:
    pipeline = tiny.make_pipeline()
    pipeline.scheduler = EulerAncestralDiscreteScheduler()
    torch.manual_seed(1)
    once = pipeline("a red coat", seed=5, num_inference_steps=3, output_type="latent").frames
    torch.manual_seed(2)
    again = pipeline("a red coat", seed=5, num_inference_steps=3, output_type="latent").frames
    assert torch.equal(once, again)


def test_a_sampler_that_is_not_for_flow_is_refused(pipeline: ClipPipeline) -> None:
    for name in ("ddpm", "nonsense"):
        with pytest.raises(Refused, match=name):
            pipeline.use_sampler(name)
    with pytest.raises(Refused, match="unknown sampler"):
        pipeline.use_sampler(["euler"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("labels", "text"), [(True, False), (False, True), (False, False)])
def test_networks_with_fewer_conditions(labels: bool, text: bool) -> None:
    pipeline = tiny.make_pipeline(labels=labels, text=text)
    ask = {**({"prompt": "red"} if text else {}), **({"label": 1} if labels else {})}
    assert pipeline(**ask, num_inference_steps=1).frames.shape == (1, 3, 16, 32, 3)
    if not text:
        with pytest.raises(Refused, match="reads no prompts"):
            pipeline("a red coat")
    if not labels:
        with pytest.raises(Refused, match="has no labels"):
            pipeline(label="coat")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a\0b"}, "NUL"),
    ({"prompt": ["red", 3]}, "prompt 2 of 2"),
    ({"prompt": 5}, "not a prompt, got int, expected text, or a list of texts"),
    ({"prompt": {"red"}}, "not a prompt, got set"),
    ({"prompt": {"red": 1}}, "not a prompt, got dict"),
    ({"prompt": b"red"}, "not a prompt, got bytes"),
    ({"prompt": "red", "negative_prompt": 5}, "not a prompt, got int"),
    ({"label": "cot"}, "did you mean 'coat'"),
    ({"label": ["coat", "zzz"]}, "'zzz'"),
    ({"label": 3}, "0 to 2"),
    ({"label": -1}, "0 to 2"),
    ({"label": True}, "True"),
    ({"prompt": []}, "prompts is empty"),
    ({"label": []}, "labels is empty"),
    ({"prompt": ["red", "blue"], "label": ["coat"] * 3}, "2 prompts and 3 labels"),
    ({}, "nothing to generate from"),
    ({"prompt": "red", "num_inference_steps": 0}, "steps"),
    ({"prompt": "red", "num_inference_steps": 2.5}, "steps"),
    ({"prompt": "red", "num_inference_steps": "12"}, "steps is out of range, got '12', expected a whole number"),
    ({"prompt": "red", "guidance_scale": -0.1}, "guidance"),
    ({"prompt": "red", "guidance_scale": "2"}, "guidance scale is out of range, got '2', expected a number"),
    ({"prompt": "red", "image_guidance_scale": "2"}, "got '2', expected a number"),
    ({"prompt": "red", "guidance_interval": 5}, "not an interval of guidance, got 5, expected (lowest, highest)"),
    ({"prompt": "red", "guidance_interval": "200-900"}, "not an interval of guidance, got '200-900'"),
    ({"prompt": "red", "guidance_interval": (1, 2, 3)}, "not an interval of guidance"),
    ({"prompt": "red", "guidance_interval": ("a", "b")}, "not an interval of guidance"),
    ({"prompt": "red", "guidance_rescale": 2}, "the rescaling of guidance is out of range, got 2, expected 0 to 1"),
    ({"prompt": "red", "guidance_projection": 0.0}, "not a projection of guidance, got 0.0, expected a Projection"),
    ({"prompt": "red", "guidance_scale": float("nan")}, "guidance"),
    ({"prompt": "red", "guidance_scale": float("inf")}, "guidance"),
    ({"prompt": "red", "seed": -1}, "seed"),
    ({"prompt": "red", "seed": None}, "seed is out of range, got None, expected a whole number of 0 or more"),
    ({"prompt": "red", "seed": 1.5}, "seed is out of range, got 1.5"),
    ({"prompt": "red", "seed": "12"}, "seed is out of range, got '12'"),
    ({"prompt": "red", "seed": True}, "seed is out of range, got True"),
    ({"prompt": "red", "seed": [1.0]}, "seed is out of range, got 1.0"),
    ({"prompt": "red", "first_index": -1}, "first index"),
    ({"prompt": "red", "first_index": None}, "first index is out of range, got None"),
    ({"prompt": "red", "batch_size": 0}, "batch size"),
    ({"prompt": "red", "num_clips_per_prompt": 0}, "clips a prompt"),
    ({"prompt": "red", "num_clips_per_prompt": 10**6}, "too much for one call"),
    ({"prompt": "red", "num_frames": 0}, "number of frames"),
    ({"prompt": "red", "num_frames": 10**7}, "too much for one call"),
    ({"prompt": "red", "height": 20}, "the nearest is 16x32"),
    ({"prompt": "red", "height": 3, "width": 10}, "the nearest is 8x16"),
    ({"prompt": "red", "width": -8}, "width"),
    ({"prompt": "red", "height": 10**6, "width": 10**6}, "too much for one call"),
    ({"prompt": "red", "output_type": "mp4"}, "output type"),
    ({"prompt": "red", "precision": "float16"}, "precision"),
    ({"prompt": "red", "generator": [torch.Generator()] * 2}, "2 generators, expected 1"),
    ({"prompt": "red", "generator": 5}, "not a generator, got int, expected a torch.Generator, or a list of them; say"),
    ({"prompt": "red", "generator": ["x"]}, "not a generator, got str"),
    ({"prompt": "red", "progress": 5}, "the callback cannot be called, in progress, got int"),
]


@pytest.mark.parametrize(("ask", "said"), REFUSALS)
def test_refusals_come_before_any_work(
    pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch, ask: dict[str, Any], said: str
) -> None:
    tiny.forbid_work(pipeline, monkeypatch)
    with pytest.raises(Refused) as refusal:
        pipeline(**ask)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_frames_follow_the_patches_and_the_nearest_is_named() -> None:
    pipeline = tiny.make_pipeline(patch_frames=2)
    pipeline.register_to_config(clip={**tiny.CLIP, "frames": 4})
    with pytest.raises(Refused, match=r"got 5, .* the nearest: 4 and 6"):
        pipeline("red", num_frames=5)
    with pytest.raises(Refused, match="the nearest: 2$"):
        pipeline("red", num_frames=1)
    assert pipeline("red", num_inference_steps=1).frames.shape[1] == 4


def test_saved_and_loaded_it_makes_the_same_clips(pipeline: ClipPipeline, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"prompt": "a red coat", "label": "dress", "num_inference_steps": 2, "output_type": "latent"}
    wanted = pipeline(**ask).frames
    pipeline.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ClipPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**ask).frames, wanted)
    assert again.config.label_names == pipeline.config.label_names
    assert again.default_size() == (3, 16, 32)
    assert again.tokenizer.model_max_length == 8


def test_a_pipeline_without_text_saves_and_loads(tmp_path: Path) -> None:
    pipeline = tiny.make_pipeline(text=False)
    pipeline.save_pretrained(tmp_path / "saved")
    again = ClipPipeline.from_pretrained(tmp_path / "saved")
    assert again.text_encoder is None
    ask: dict[str, Any] = {"label": 2, "num_inference_steps": 1, "output_type": "latent"}
    assert torch.equal(again(**ask).frames, pipeline(**ask).frames)


def test_label_names_must_be_those_of_the_network() -> None:
    pipeline = tiny.make_pipeline()
    parts = dict(pipeline.components)
    with pytest.raises(Refused, match="2 names, expected 3"):
        ClipPipeline(**parts, label_names=["coat", "dress"])


def test_bfloat16_comes_near_float32(pipeline: ClipPipeline) -> None:
    ask: dict[str, Any] = {"prompt": "red", "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1}
    exact = pipeline(**ask).frames
    near = pipeline(**ask, precision="bfloat16").frames
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.05 * exact.norm()


def test_in_another_dtype() -> None:
    pipeline = tiny.make_pipeline().to(torch.bfloat16)
    frames = pipeline("red", num_inference_steps=1).frames
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()


def test_progress_is_told(pipeline: ClipPipeline) -> None:
    told: list[tuple[int, int]] = []
    pipeline(PROMPTS[:3], num_inference_steps=2, batch_size=2, progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_words_that_cannot_be_read_are_said_once(pipeline: ClipPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmdit"):
        pipeline(["a red zebra", "zebra"], num_inference_steps=1, batch_size=1)
    assert caplog.text.count("zebra") == 1
