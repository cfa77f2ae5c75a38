"""The comparison counts what is done, and compares like with like."""

from typing import Any

import pytest
import tiny
import torch

from mmdit.diffusion import RectifiedFlow
from mmdit.errors import Refused
from mmdit.evaluation.score import psnr
from mmdit.models.caching import Broadcast
from mmdit.pipelines.comparison import Result, Way, compare, ways

CALL: dict[str, Any] = {"prompt": ["a red coat", "a blue dress", "red"], "batch_size": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    tried = [
        Way("reference", 8), Way("plain", 4), Way("heun", 2, "heun"),
        Way("interval", 4, prepare=lambda pipeline: pipeline.use_guidance(interval=(400, 1000))),
        Way("two passes", 4, prepare=lambda pipeline: pipeline.use_guidance(passes=2)),
        Way("cached", 4, prepare=lambda pipeline: pipeline.enable_first_block_cache(1e9)),
    ]  # fmt: skip
    wanted = {"colour": ["red", "blue", "red"]}

    def read(clips: torch.Tensor) -> dict[str, list[str]]:
        return {"colour": ["red"] * len(clips)}

    told = list[tuple[int, int]]()
    found = compare(
        tiny.make_pipeline, tried, runs=1, call=CALL, wanted=wanted, read=read,
        progress=lambda done, total, name: told.append((done, total)),
    )  # fmt: skip
    assert told == [(number, 12) for number in range(1, 13)]
    return {result.name: result for result in found}


def test_calls_and_passes_are_counted(results: dict[str, Result]) -> None:
    counted = {name: (result.calls, result.passes) for name, result in results.items()}
    assert counted == {
        "reference": (8, 16), "plain": (4, 8), "heun": (3, 6), "interval": (4, 7), "two passes": (8, 8),
        "cached": (4, 5),  # the first block at 4 steps, the second at one: 8 and 2 a clip
    }  # fmt: skip


def test_quality_is_against_many_plain_steps_and_as_many(results: dict[str, Result]) -> None:
    def clips(steps: int, cached: bool = False) -> torch.Tensor:
        pipeline = tiny.make_pipeline()
        if cached:
            pipeline.enable_first_block_cache(1e9)
        made: torch.Tensor = pipeline(**CALL, num_inference_steps=steps, output_type="pt").frames
        return made

    assert results["reference"].psnr is None
    assert results["plain"].psnr == pytest.approx(float(psnr(clips(4), clips(8)).mean()))
    assert results["plain"].psnr_plain is None
    assert results["cached"].psnr_plain == pytest.approx(float(psnr(clips(4, True), clips(4)).mean()))
    assert results["heun"].psnr_plain is None
    assert all(result.accuracy == {"colour": pytest.approx(2 / 3)} for result in results.values())
    assert all(result.seconds > 0 and result.cpu_seconds > 0 for result in results.values())


def test_every_way_has_a_name_of_its_own_and_steps_that_can_be() -> None:
    for steps in (2, 12):
        found = ways(RectifiedFlow(), steps, 50, Broadcast({"time": 2}))
        assert len({way.name for way in found}) == len(found) or steps == 2
        assert min(way.steps for way in found) >= 2
    assert [way.name for way in found[:2]] == ["plain, 50 steps", "plain, 12 steps"]
    assert any("time 2" in way.name for way in found)
    assert [way.steps for way in found if way.name.startswith("plain")] == [50, 12, 10, 8, 6, 4]
    assert [way.steps for way in ways(RectifiedFlow(), 8, 50, None) if way.name.startswith("plain")] == [50, 8, 4, 2]
    with pytest.raises(Refused, match="nothing can be broadcast"):
        ways(RectifiedFlow(), 12, 50, None, ["broadcast"])
    assert not any("broadcast" in way.name for way in ways(RectifiedFlow(), 12, 50, None))
