"""Caches and the like: nothing leaks, turned off they are the plain result, and they leave out what they say."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmdit import files
from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.models.caching import Broadcast, FirstBlockCache
from mmdit.pipelines.broadcast_file import BROADCAST_FORMAT, read_broadcast
from mmdit.pipelines.clip_pipeline import ClipPipeline

BROADCAST = Broadcast({"space": 2, "time": 3, "cross": 2, "joint": 2}, (100, 990))
THRESHOLD = 0.25
CACHES = ("broadcast", "first-block")
CALL: dict[str, Any] = {"prompt": ["a red coat", "a blue dress", "red"], "num_inference_steps": 8}
DEPTH = 3


def make_network(layout: str = "factorized", **options: Any) -> DiT:
    network = DiT(
        sample_size=(3, 2, 4), patch_size=(1, 1, 2), in_channels=4, hidden_size=32, depth=DEPTH, num_heads=2,
        layout=layout, num_classes=3, text_dim=16, **options,
    )  # fmt: skip
    tiny.randomize(network, 0)
    with torch.no_grad():
        for weight in network.t_embedder.parameters():
            weight.mul_(0.2)  # so that steps resemble their neighbours, as in a trained network
    return network.eval()


def make_pipeline(cache: str | None = None, **options: Any) -> ClipPipeline:
    pipeline = tiny.make_pipeline()
    pipeline.register_modules(transformer=make_network(**options))
    if cache is not None:
        enable(pipeline, cache)
    return pipeline


def enable(pipeline: ClipPipeline, cache: str) -> None:
    if cache == "broadcast":
        pipeline.enable_attention_broadcast(BROADCAST)
    else:
        pipeline.enable_first_block_cache(THRESHOLD)


def latents(pipeline: ClipPipeline, **call: Any) -> torch.Tensor:
    made: torch.Tensor = pipeline(**{**CALL, **call}, output_type="latent").frames
    return made


def rows_through(pipeline: ClipPipeline, name: str, **call: Any) -> int:
    """How many samples go through a module of the network in one call."""
    rows = list[int]()
    module = pipeline.transformer.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    latents(pipeline, **call)
    hook.remove()
    return sum(rows)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return latents(make_pipeline())


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_changes_little_and_turned_off_nothing(cache: str, plain: torch.Tensor) -> None:
    pipeline = make_pipeline(cache)
    cached = latents(pipeline)
    assert not torch.equal(cached, plain)
    assert (cached - plain).norm() < 0.5 * plain.norm()
    pipeline.disable_cache()
    assert torch.equal(latents(pipeline), plain)
    assert list(pipeline.transformer.state_dict()) == list(make_network().state_dict())


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_nothing_leaks_from_call_to_call(cache: str, passes: int) -> None:
    calls: list[dict[str, Any]] = [{"seed": 1}, {"prompt": "blue", "seed": 2, "num_frames": 1}, {"seed": 1}]
    one = make_pipeline(cache)
    one.use_guidance(passes=passes)
    for call in calls:
        fresh = make_pipeline(cache)
        fresh.use_guidance(passes=passes)
        assert torch.equal(latents(one, **call), latents(fresh, **call))


@pytest.mark.parametrize("cache", CACHES)
def test_nothing_leaks_from_clip_to_clip(cache: str) -> None:
    """A clip is the same whatever is made beside it, in its batch or before it."""
    pipeline = make_pipeline(cache)
    together = latents(pipeline)
    torch.testing.assert_close(latents(pipeline, batch_size=1), together, atol=1e-5, rtol=0)
    alone = latents(pipeline, prompt=CALL["prompt"][2], first_index=2)
    torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", CACHES)
def test_the_halves_of_guidance_are_remembered_apart(cache: str) -> None:
    pipeline = make_pipeline(cache)
    together = latents(pipeline)
    pipeline.use_guidance(passes=2)
    torch.testing.assert_close(latents(pipeline), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", CACHES)
def test_after_a_failure_the_network_is_whole(cache: str, plain: torch.Tensor) -> None:
    pipeline = make_pipeline(cache)
    hook = pipeline.transformer.final_layer.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        latents(pipeline)
    hook.remove()
    pipeline.disable_cache()
    assert torch.equal(latents(pipeline), plain)


@pytest.mark.parametrize(
    "cache", [Broadcast({}), Broadcast({"space": 1}), Broadcast({"space": 3}, (0, 0)), FirstBlockCache(0)], ids=str
)
def test_a_cache_that_takes_nothing_again_is_the_plain_result(cache: Any, plain: torch.Tensor) -> None:
    pipeline = make_pipeline()
    pipeline._cache = cache
    assert torch.equal(latents(pipeline), plain)


def test_attentions_are_computed_every_so_many_steps_inside_the_interval() -> None:
    pipeline = make_pipeline()
    every_time = rows_through(pipeline, "blocks.1.attn")
    per_step = every_time // 8
    pipeline.enable_attention_broadcast(Broadcast({"space": 3, "time": 2}, (300, 900)))
    times = pipeline.scheduler.timesteps.tolist()
    assert [300 <= time <= 900 for time in times] == [False, True, True, True, True, True, False, False]
    assert rows_through(pipeline, "blocks.1.attn") == per_step * (3 + 2)  # outside, and of five the first and fourth
    assert rows_through(pipeline, "blocks.1.time_attn") == per_step * (3 + 3)
    assert rows_through(pipeline, "blocks.1.mlp") == per_step * 8


def test_each_sample_skips_by_itself() -> None:
    pipeline = make_pipeline("first-block")
    rows = [rows_through(pipeline, f"blocks.{number}", batch_size=3) for number in range(DEPTH)]
    alone = [rows_through(pipeline, "blocks.2", prompt=CALL["prompt"][i], first_index=i) for i in range(3)]
    assert rows[0] == 8 * 2 * 3
    assert rows[1] == rows[2] == sum(alone)
    assert 2 * 3 < rows[1] < rows[0]
    assert rows[1] % 6  # not all samples of a batch at the same steps


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "options",
    [
        {"layout": "space"}, {"layout": "alternating"}, {"layout": "joint", "positions": "rotary"},
        {"conditioning": "shared-adaln"}, {"conditioning": "cross-attention"}, {"conditioning": "in-context"},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_network_is_served(options: dict[str, Any], cache: str) -> None:
    pipeline = make_pipeline(**options)
    exact = latents(pipeline)
    enable(pipeline, cache)
    cached = latents(pipeline)
    assert not torch.equal(cached, exact)
    torch.testing.assert_close(latents(pipeline, batch_size=1), cached, atol=1e-5, rtol=0)


def test_a_heavy_sampler_and_an_interval_of_guidance_go_with_a_cache() -> None:
    for cache in CACHES:
        pipeline = make_pipeline(cache)
        pipeline.use_sampler("heun")
        pipeline.use_guidance(interval=(400, 900))
        once = latents(pipeline)
        assert once.isfinite().all()
        assert torch.equal(latents(pipeline), once)


def test_guidance_outside_the_interval_costs_nothing() -> None:
    pipeline = make_pipeline()
    full, network = latents(pipeline), "x_embedder"
    assert rows_through(pipeline, network) == 8 * 6
    pipeline.use_guidance(interval=(300, 900))
    assert rows_through(pipeline, network) == 5 * 6 + 3 * 3
    assert not torch.allclose(latents(pipeline), full, atol=1e-3)
    pipeline.use_guidance(interval=(0, 1000))
    assert torch.equal(latents(pipeline), full)
    pipeline.use_guidance()
    assert torch.equal(latents(pipeline), full)


def test_blocks_are_compiled_in_place(plain: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, pipeline = list[int](), make_pipeline()

    def compile_nothing(call: Any, **how: Any) -> Any:
        def counted(*inputs: Any) -> Any:
            calls.append(len(inputs[0]))
            return call(*inputs)

        return counted

    monkeypatch.setattr(torch, "compile", compile_nothing)
    pipeline.enable_compile()
    assert torch.equal(latents(pipeline), plain)
    assert calls == [6] * 8 * DEPTH
    with pytest.raises(Refused, match="compiled blocks cannot be broadcast"):
        pipeline.enable_attention_broadcast(BROADCAST)
    pipeline.enable_first_block_cache(THRESHOLD)
    torch.testing.assert_close(latents(pipeline), latents(make_pipeline("first-block")), atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    pipeline = make_pipeline("first-block")
    for cache in CACHES:
        with pytest.raises(Refused, match=r"a cache is on.*disable_cache"):
            enable(pipeline, cache)
    pipeline.disable_cache()
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(Refused, match="threshold of the first-block cache is out of range"):
            pipeline.enable_first_block_cache(threshold)
    for ways in (5, ["compile"], {"first-block": 0.2}):
        with pytest.raises(Refused, match="no such way to sample faster.* keys of broadcast, compile, first_block"):
            pipeline.use_faster(ways)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"no such attention.*'spice'"):
        Broadcast({"spice": 2})
    with pytest.raises(Refused, match=r"steps of time attention.*got 0"):
        Broadcast({"time": 0})
    with pytest.raises(Refused, match="interval of the broadcast is empty"):
        Broadcast({"time": 2}, (500, 100))
    with pytest.raises(Refused, match="passes of guidance"):
        pipeline.use_guidance(passes=3)
    with pytest.raises(Refused, match="interval of guidance is empty"):
        pipeline.use_guidance(interval=(900, 100))
    pipeline.enable_attention_broadcast(BROADCAST)
    with pytest.raises(Refused, match="compiled blocks cannot broadcast"):
        pipeline.enable_compile()
    single = tiny.make_pipeline()
    single.transformer.blocks = single.transformer.blocks[:1]
    with pytest.raises(Refused, match="one block"):
        single.enable_first_block_cache()


def stored(**changes: Any) -> dict[str, Any]:
    origin = {"checkpoint": "abc", "weights": "ema"}
    return {"format": BROADCAST_FORMAT, "every": {"time": 2}, "interval": [100, 900], "origin": origin, **changes}


def test_a_file_of_settings_is_read_for_its_weights_only(tmp_path: Path) -> None:
    path, origin = tmp_path / "broadcast.json", {"checkpoint": "abc", "weights": "ema", "step": 5}
    files.write_json(path, stored())
    assert read_broadcast(path, origin) == Broadcast({"time": 2}, (100, 900))
    for other in (None, {**origin, "weights": "raw"}, {**origin, "checkpoint": "def"}):
        with pytest.raises(Refused, match="calibrated for other weights"):
            read_broadcast(path, other)
    broken: list[Any] = [[], stored(every=[1]), stored(interval=[1]), stored(interval=["a", "b"]), {}]
    for value in broken:
        files.write_json(path, value)
        with pytest.raises(Refused, match="no whole broadcast settings"):
            read_broadcast(path, origin)
    files.write_json(path, stored(format=99))
    with pytest.raises(Refused, match="another format"):
        read_broadcast(path, origin)
    with pytest.raises(Refused, match="no whole broadcast settings"):
        read_broadcast(tmp_path / "nothing.json", origin)
