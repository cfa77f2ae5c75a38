"""Less memory: slices, tiles, offloading, and long clips that are never decoded whole."""

from typing import Any

import pytest
import tiny
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import CpuOffload
from small_vaes import CASES
from torch.profiler import ProfilerActivity, profile

from mmdit.errors import Refused
from mmdit.latents.codec import Codec, load_codec
from mmdit.pipelines.windows import Windows, make_windows

ASK: dict[str, Any] = {"prompt": ["red", "blue"], "num_inference_steps": 1, "output_type": "pt"}


def test_slices_are_decoded_one_by_one_and_give_the_same_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.make_pipeline()
    decoded, plain = list[int](), pipeline.vae.decoder.forward

    def counted(latents: torch.Tensor, *others: Any) -> torch.Tensor:
        decoded.append(len(latents))
        made: torch.Tensor = plain(latents, *others)
        return made

    monkeypatch.setattr(pipeline.vae.decoder, "forward", counted)
    whole = pipeline(**ASK).frames
    pipeline.enable_vae_slicing()
    sliced = pipeline(**ASK).frames
    pipeline.disable_vae_slicing()
    torch.testing.assert_close(pipeline(**ASK).frames, whole)
    assert decoded == [6, *[1] * 6, 6]  # two clips of three frames
    torch.testing.assert_close(sliced, whole, atol=1e-5, rtol=0)


def test_tiling_by_the_pipelines_names() -> None:
    pipeline = tiny.make_pipeline()
    pipeline.enable_vae_tiling()
    assert pipeline.codec.tiling == {"size": 32, "overlap": 8}
    pipeline.disable_vae_tiling()
    assert pipeline.codec.tiling is None


def test_a_vae_that_can_do_neither_is_refused() -> None:
    pipeline = tiny.make_pipeline()
    made, settings = CASES["image with a temporal decoder"]
    pipeline.vae = made(**settings)
    with pytest.raises(Refused, match="no tiling"):
        pipeline.enable_vae_tiling()
    with pytest.raises(Refused, match="no slicing"):
        pipeline.enable_vae_slicing()


def test_attention_in_slices_is_refused_and_not_passed_over() -> None:
    pipeline = tiny.make_pipeline()
    with pytest.raises(Refused, match="in enable_attention_slicing; make smaller batches"):
        pipeline.enable_attention_slicing()
    pipeline.disable_attention_slicing()


def test_models_take_turns_on_the_device_and_make_the_same_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the CPU here too: what is seen is the order in which the models are brought and taken away."""
    pipeline = tiny.make_pipeline()
    whole = pipeline(**ASK).frames
    pipeline.enable_model_cpu_offload(device="cpu")
    turns, plain = list[str](), CpuOffload.pre_forward
    names = {id(module): name for name, module in pipeline.components.items()}

    def entered(self: Any, module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        turns.append(names[id(module)])
        return plain(self, module, *args, **options)

    monkeypatch.setattr(CpuOffload, "pre_forward", entered)
    assert torch.equal(pipeline(**ASK).frames, whole)
    assert list(dict.fromkeys(turns)) == ["text_encoder", "transformer", "vae"]
    assert [names[id(hook.model)] for hook in pipeline._all_hooks] == list(dict.fromkeys(turns))
    with pytest.raises(RuntimeError, match="requires accelerator"):
        tiny.make_pipeline().enable_model_cpu_offload()


def test_an_offloaded_codec_computes_where_it_is_brought_to() -> None:
    """The meta device stands in for an accelerator: other shapes' data would not go together with it."""
    codec = tiny.make_codec()
    cpu_offload_with_hook(codec.vae, torch.device("meta"))
    assert (codec.vae.device.type, codec.device.type) == ("cpu", "meta")
    assert codec.decode(torch.zeros(1, 4, 3, 2, 4)).device.type == "meta"
    assert Codec(tiny.make_codec().vae).device.type == "cpu"


def peak(work: Any) -> int:
    """The most bytes that tensors took at a time while `work` was done, by the allocator's own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    changes = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    del result
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


@pytest.mark.parametrize("name", ["image", "fashion"])
def test_ten_times_more_frames_are_decoded_in_the_memory_of_one_window(name: str) -> None:
    """Beside the clip itself, which is made to be kept."""
    codec = load_codec(name) if name == "fashion" else Codec(CASES[name][0](**CASES[name][1]).eval())
    length, side = 1 + 2 * codec.frame_step, 8 * codec.space_factor
    grid = codec.latent_size((length, side, side))
    latents = torch.randn(1, codec.channels, *grid)

    def decode(frames: int) -> int:
        windows = Windows(frames, length, grid, 1, 1)
        before = codec.decode(latents)
        most = peak(lambda: make_windows(codec, windows, None, lambda number, given: latents, latents=False))
        return most - 4 * before[0, :, 0].numel() * frames

    one, ten = decode(length), decode(10 * length)
    assert 0 < ten < 1.3 * one


def test_in_bfloat16_the_clips_are_near() -> None:
    ask = {**ASK, "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    exact = tiny.make_pipeline()(**ask).frames
    near = tiny.make_pipeline().to(dtype=torch.bfloat16)(**ask).frames
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.1 * exact.norm()
