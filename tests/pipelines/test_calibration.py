"""Calibration keeps to its floor, says what it saves, and its file fits the weights it was found for."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmdit.errors import Refused, Stopped
from mmdit.evaluation.score import psnr
from mmdit.models.caching import Broadcast
from mmdit.pipelines.calibration import MOST, calibrate_broadcast, reused_share, save_broadcast
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import load_pipeline

CALL: dict[str, Any] = {"prompt": ["a red coat", "a blue dress"], "num_inference_steps": 6}
KINDS = ["space", "time"] * 2


@pytest.fixture
def pipeline(tmp_path: Path) -> ClipPipeline:
    tiny.write_run(tmp_path / "run")
    loaded = load_pipeline(tmp_path / "run")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def lowest(pipeline: ClipPipeline, how: Broadcast) -> float:
    plain = pipeline(**CALL, output_type="pt").frames
    pipeline.enable_attention_broadcast(how)
    made = pipeline(**CALL, output_type="pt").frames
    pipeline.disable_cache()
    return float(psnr(made, plain).min())


def test_more_is_reused_the_lower_the_floor_and_none_lies_below_it(pipeline: ClipPipeline) -> None:
    everything = lowest(pipeline, Broadcast({"space": MOST, "time": MOST}, (0, 1000)))
    reused = []
    for floor in (1, everything + 3):
        found = calibrate_broadcast(pipeline, floor=floor, **CALL)
        assert lowest(pipeline, found.how) == pytest.approx(found.psnr)
        assert found.psnr >= floor
        reused.append(found.reused)
    assert reused[0] == pytest.approx((MOST - 1) / MOST)  # computed once in six steps
    assert 0 < reused[1] < reused[0]


def test_what_cannot_be_kept_stops_and_what_makes_no_sense_is_refused(pipeline: ClipPipeline) -> None:
    with pytest.raises(Stopped, match="no attention can be broadcast"):
        calibrate_broadcast(pipeline, floor=300, **CALL)
    with pytest.raises(Refused, match="floor is out of range"):
        calibrate_broadcast(pipeline, floor=0, **CALL)
    pipeline.enable_first_block_cache()
    with pytest.raises(Refused, match="a cache is on"):
        calibrate_broadcast(pipeline, floor=20, **CALL)


@pytest.mark.parametrize("how", [Broadcast({"space": 2, "time": 5}, (0, 1000)), Broadcast({"time": 2}, (300, 800))])
def test_the_share_that_is_told_is_the_share_that_is_reused(pipeline: ClipPipeline, how: Broadcast) -> None:
    computed = list[int]()
    for block in pipeline.transformer.blocks:
        for attention in (block.attn, block.time_attn):
            attention.register_forward_pre_hook(lambda module, inputs: computed.append(1))
    pipeline(**CALL, output_type="latent")
    times, full = pipeline.scheduler.timesteps.tolist(), len(computed)
    computed.clear()
    pipeline.enable_attention_broadcast(how)
    pipeline(**CALL, output_type="latent")
    assert reused_share(how, KINDS, times) == pytest.approx(1 - len(computed) / full)
    assert len(computed) < full


def test_the_file_is_for_these_weights(pipeline: ClipPipeline, tmp_path: Path) -> None:
    path = tmp_path / "run" / "broadcast.json"
    found = calibrate_broadcast(pipeline, floor=5, **CALL, seed=3)
    save_broadcast(path, found, pipeline)
    again = load_pipeline(tmp_path / "run")
    again.enable_attention_broadcast(path)
    assert again._cache == found.how
    stored = json.loads(path.read_text("utf-8"))
    assert stored["found_with"]["num_inference_steps"] == 6
    assert stored["found_with"]["seed"] == 3
    with pytest.raises(Refused, match="other weights"):
        load_pipeline(tmp_path / "run", weights="raw").enable_attention_broadcast(path)
