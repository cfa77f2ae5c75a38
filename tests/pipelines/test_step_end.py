"""Callbacks at the end of each step, and stopping between two steps, as in diffusers."""

from typing import Any

import pytest
import tiny
import torch
from diffusers.callbacks import PipelineCallback

from mmdit.errors import Refused, Stopped
from mmdit.pipelines.clip_pipeline import ClipPipeline

ASK: dict[str, Any] = {"prompt": "a red coat", "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipeline() -> ClipPipeline:
    made: ClipPipeline = tiny.make_pipeline(given_frames=("first",))
    return made


def test_a_callback_sees_each_step_and_leaves_the_clip_as_it_is(pipeline: ClipPipeline) -> None:
    seen: list[tuple[Any, int, float, torch.Tensor]] = []

    def look(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((pipe, step, float(timestep), tensors["latents"].clone()))
        return tensors

    made = pipeline(**ASK, callback_on_step_end=look).frames
    assert [(pipe, step) for pipe, step, _, _ in seen] == [(pipeline, 0), (pipeline, 1), (pipeline, 2)]
    assert [time for _, _, time, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert torch.equal(seen[-1][3], made)
    assert not torch.equal(seen[0][3], seen[1][3])
    assert torch.equal(pipeline(**ASK).frames, made)


def test_latents_that_a_callback_gives_back_are_gone_on_with(pipeline: ClipPipeline) -> None:
    class Last(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: Any) -> Any:
            last = step_index == pipeline.num_timesteps - 1
            return {"latents": callback_kwargs["latents"] * (0 if last else 1)}

    assert not pipeline(**ASK, callback_on_step_end=Last()).frames.any()
    plain = pipeline(**ASK).frames
    first = pipeline(**ASK, callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"] + (i == 0)}).frames
    assert not torch.allclose(first, plain, atol=0.1)


def test_a_callback_may_want_nothing_and_give_back_nothing(pipeline: ClipPipeline) -> None:
    seen: list[Any] = []
    pipeline(**ASK, callback_on_step_end=lambda p, i, t, k: seen.append(k), callback_on_step_end_tensor_inputs=[])
    assert seen == [{}, {}, {}]


def test_a_callback_sees_given_frames_as_they_are(pipeline: ClipPipeline) -> None:
    latent, seen = torch.full((4, 2, 4), 0.25), list[torch.Tensor]()
    pipeline(**ASK, given={0: latent}, callback_on_step_end=lambda p, i, t, k: seen.append(k["latents"]))
    assert all(torch.equal(latents[0, :, 0], latent) for latents in seen)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "got 'prompt_embeds', expected latents"),
        ({"callback_on_step_end": 3}, "got int"),
    ],
)
def test_what_cannot_be_called_back_is_refused_before_any_work(
    pipeline: ClipPipeline, monkeypatch: pytest.MonkeyPatch, ask: dict[str, Any], said: str
) -> None:
    tiny.forbid_work(pipeline, monkeypatch)
    with pytest.raises(Refused, match=said):
        pipeline(**ASK, **{"callback_on_step_end": lambda *told: None, **ask})


@pytest.mark.parametrize("latents", [torch.zeros(2, 4, 3, 2, 4), None])
def test_other_latents_from_a_callback_stop_the_call(pipeline: ClipPipeline, latents: Any) -> None:
    with pytest.raises(Stopped, match=r"step 1, got \(.*expected \(1, 4, 3, 2, 4\)"):
        pipeline(**ASK, callback_on_step_end=lambda p, i, t, k: {"latents": latents})


def test_interrupt_stops_after_the_step_at_hand(pipeline: ClipPipeline) -> None:
    states, told = list[torch.Tensor](), list[tuple[int, int]]()
    pipeline(**ASK, callback_on_step_end=lambda p, i, t, k: states.append(k["latents"]))

    def stop(pipe: Any, step: int, timestep: Any, tensors: Any) -> None:
        pipe._interrupt = step == 1  # the name that diffusers' own scripts set

    made = pipeline(**ASK, callback_on_step_end=stop, progress=lambda *now: told.append(now)).frames
    assert told == [(1, 3), (2, 3)]
    assert pipeline.interrupt
    assert torch.equal(made, states[1])
    assert torch.equal(pipeline(**ASK).frames, states[2])  # a new call begins anew


def test_interrupt_leaves_out_later_batches_and_windows(pipeline: ClipPipeline) -> None:
    told = list[tuple[int, int]]()

    def stop(pipe: Any, step: int, timestep: Any, tensors: Any) -> None:
        pipe.interrupt = True

    ask = {**ASK, "prompt": ["red", "blue", "red"], "callback_on_step_end": stop, "num_frames": 5}
    made = pipeline(**ask, batch_size=2, progress=lambda *now: told.append(now)).frames
    assert told == [(1, 12)]  # two batches of two windows of three steps
    assert made.shape == (2, 4, 5, 2, 4)
