"""How far attention can be broadcast with these weights: found by sampling, and kept in a small file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.evaluation.score import psnr
from mmdit.models.caching import Broadcast, attentions
from mmdit.pipelines.broadcast_file import BROADCAST_FORMAT, sampler_of, weights_of
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.faster import check_blocks

INTERVALS = ((0.0, 1000.0), (100.0, 950.0), (100.0, 900.0))  # timesteps, from all of the schedule to its middle
MOST = 6  # steps from one computation to the next


@dataclass(frozen=True)
class Calibrated:
    """What was found: the settings, the lowest PSNR (dB) of a clip against the uncached one, the share of attentions
    that is not computed, and the call that this was found with."""

    how: Broadcast
    psnr: float
    reused: float
    floor: float
    call: dict[str, Any]


def calibrate_broadcast(
    pipeline: ClipPipeline, *, floor: float, after_try: Callable[[int, int], None] | None = None, **call: Any
) -> Calibrated:
    """The broadcast that computes the fewest attentions with every clip at `floor` dB or more against the uncached one.

    Each kind of attention is computed more and more seldom, in turns, for as long as all clips keep to the floor. The
    floor holds for the clips of this call; others may lie below it.

    Args:
        floor: PSNR in dB of decoded clips, more than 0.
        after_try: called with (tries done, tries at most).
        call: what the pipeline is called with: prompts, number of steps, guidance, seed and so on.

    Raises:
        Refused: a floor of 0 or less, a network that is no DiT, or a pipeline whose cache is on.
        Stopped: nothing can be broadcast at this floor.
    """
    check_floor(floor)
    check_blocks(pipeline.transformer)
    plain = pipeline(**call, output_type="pt").frames
    times = pipeline.scheduler.timesteps.tolist()
    kinds = [kind for block in pipeline.transformer.blocks for kind in attentions(block).values()]

    most, tries = len(INTERVALS) * len(set(kinds)) * (MOST - 1), 0

    def lowest(how: Broadcast) -> float:
        nonlocal tries
        pipeline.enable_attention_broadcast(how)
        try:
            made = pipeline(**call, output_type="pt").frames
        finally:
            pipeline.disable_cache()
        tries += 1
        if after_try is not None:
            after_try(tries, most)
        return float(torch.nan_to_num(psnr(made, plain), nan=0.0, posinf=math.inf).min())

    found: list[Calibrated] = []
    for interval in INTERVALS:
        how, reached, rising = Broadcast({}, interval), math.inf, sorted(set(kinds))
        while rising:
            for kind in tuple(rising):
                trial = _more(how, kind, kinds, times)
                value = 0.0 if trial is None else lowest(trial)
                if trial is not None and value >= floor:
                    how, reached = trial, value
                else:
                    rising.remove(kind)
        found.append(Calibrated(how, reached, reused_share(how, kinds, times), floor, call))
    best = max(found, key=lambda one: one.reused)
    if not best.how.every:
        raise Stopped("no attention can be broadcast at this floor", got=f"{floor} dB", fix="ask for a lower one")
    return best


def check_floor(floor: float) -> None:
    """Refused for a floor that no clip could miss."""
    if not floor > 0:
        raise Refused("the floor is out of range", got=floor, expected="more than 0 dB")


def _more(how: Broadcast, kind: str, kinds: list[str], timesteps: list[float]) -> Broadcast | None:
    """The next settings that compute this kind less often; None where there are none."""
    for steps in range(how.every.get(kind, 1) + 1, MOST + 1):
        more = Broadcast({**how.every, kind: steps}, how.interval)
        if reused_share(more, kinds, timesteps) > reused_share(how, kinds, timesteps):
            return more
    return None


def reused_share(how: Broadcast, kinds: list[str], timesteps: list[float]) -> float:
    """The share of attentions, of these kinds, that is taken again when the network is asked at these timesteps."""
    reused = 0
    for kind in kinds:
        inside = 0  # steps since the interval began
        for time in timesteps:
            if how.interval[0] <= time <= how.interval[1]:
                reused += inside % how.every.get(kind, 1) > 0
                inside += 1
            else:
                inside = 0
    return reused / max(1, len(kinds) * len(timesteps))


def save_broadcast(path: str | Path, found: Calibrated, pipeline: ClipPipeline) -> None:
    """Writes the settings for `enable_attention_broadcast`, which takes them for the pipeline's weights only."""
    told = ("num_inference_steps", "guidance_scale", "seed")
    files.write_json(
        path,
        {
            "format": BROADCAST_FORMAT,
            "every": dict(found.how.every),
            "interval": list(found.how.interval),
            "floor": found.floor,
            "psnr": None if found.psnr == math.inf else round(found.psnr, 2),
            "reused": round(found.reused, 4),
            "found_with": {
                "sampler": sampler_of(pipeline),
                **{key: found.call[key] for key in told if key in found.call},
            },
            "origin": weights_of(pipeline.config.origin),
        },
    )
