"""Ways to sample side by side: what each costs, and how far its clips are from those of many plain steps."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mmdit.diffusion import samplers_for
from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.evaluation.score import attribute_scores, psnr
from mmdit.models import DiT
from mmdit.models.caching import Broadcast
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.faster import check_blocks, read_ways

FEW = (10, 8)  # steps that are tried beside half and a third
ODE = ("dpm++2m", "unipc", "heun")  # the solvers of higher order


@dataclass(frozen=True)
class Way:
    """One way to sample: its name, the steps, the sampler (None: the pipeline's own), and what it switches on."""

    name: str
    steps: int
    sampler: str | None = None
    prepare: Callable[[ClipPipeline], None] = lambda pipeline: None
    compiled: bool = False


@dataclass(frozen=True)
class Result:
    """What one way gave.

    calls: of the network, in a batch. passes: samples that go through a block, for each clip, on average over blocks.
    seconds, cpu_seconds: of the clock and of this process, to sample the first batch of clips, without decoding, each
    the median of several runs; on a CPU that others use too, the second one is what compares. psnr, psnr_plain: mean in
    dB against many plain steps, and against plain sampling of the same steps and sampler (None where it is that).
    accuracy: by attribute, the share of clips that show what was asked for; empty without a probe.
    """

    name: str
    steps: int
    calls: int
    passes: float
    seconds: float
    cpu_seconds: float
    psnr: float | None
    psnr_plain: float | None
    accuracy: dict[str, float]


def ways(
    process: Process, steps: int, reference: int, broadcast: Broadcast | None, only: Sequence[str] = ()
) -> list[Way]:
    """The ways that are compared, the first one the reference: `reference` plain steps; the second one plain `steps`.

    Args:
        broadcast: calibrated for these weights; None where there is none.
        only: of what makes sampling faster only these, as `read_ways` reads them.
    """
    found = [Way(f"plain, {reference} steps", reference), Way(f"plain, {steps} steps", steps)]
    if only:
        for word in only:
            named = _named(word, broadcast)
            found.append(Way(word, steps, prepare=partial(_faster, how=named), compiled="compile" in named))
        return found
    half, third = max(2, steps // 2), max(2, steps // 3)
    fewer = sorted({*(few for few in FEW if few < steps), half, third} - {steps}, reverse=True)
    found += [Way(f"plain, {few} steps", few) for few in fewer]
    for sampler in (name for name in ODE if name in samplers_for(process)):
        tried = sorted({half, third}, reverse=True) if sampler == "heun" else (steps, *fewer)  # heun asks twice a step
        found += [Way(f"{sampler}, {count} steps", count, sampler) for count in tried]
    for interval in ((0.0, 900.0), (600.0, 1000.0), (600.0, 900.0)):
        guide = partial(_guide, interval=interval)
        found.append(Way(f"guided at timesteps {interval[0]:.0f} to {interval[1]:.0f}", steps, prepare=guide))
    if broadcast is not None:
        how = " ".join(f"{kind} {count}" for kind, count in broadcast.every.items() if count > 1)
        found.append(Way(f"attention broadcast ({how})", steps, prepare=partial(_broadcast, how=broadcast)))
    for threshold in (0.1, 0.2, 0.3):
        found.append(Way(f"first-block cache {threshold}", steps, prepare=partial(_first_block, threshold=threshold)))
    found.append(Way("guidance in two passes", steps, prepare=partial(_guide, passes=2)))
    found.append(Way("compiled", steps, prepare=lambda pipeline: pipeline.enable_compile(), compiled=True))
    return found


def compare(
    load: Callable[[], ClipPipeline],
    tried: Sequence[Way],
    *,
    runs: int,
    call: dict[str, Any],
    read: Callable[[Tensor], Any] | None = None,
    wanted: dict[str, list[str]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Result]:
    """Samples in every way at the same seeds; the first of `tried` is the reference, the second what is plain.

    All clips are made once, not timed (compiling falls into it), and judged. What is timed is the first batch, in runs
    that go through all ways in turn, so that a slow minute of the machine slows all.

    Args:
        load: makes a new pipeline; every way has one of its own.
        call: what the pipelines are called with: "prompt", a list, "batch_size", and what else there is.
        read, wanted: clips (N, 3, frame, height, width) to attributes, and those that were asked for.
        progress: called with (runs done, runs in all, the way's name).

    Raises:
        Refused: a network that is no DiT.
    """
    pipelines, clips, counts = [], [], []
    total, seconds = len(tried) * (runs + 1), [list[tuple[float, float]]() for _ in tried]
    for number, way in enumerate(tried):
        pipeline = load()
        check_blocks(pipeline.transformer)
        pipeline.set_progress_bar_config(disable=True)
        if way.sampler is not None:
            pipeline.use_sampler(way.sampler)
        way.prepare(pipeline)
        with _counted(pipeline.transformer, blocks=not way.compiled) as count:
            latents = _sample(pipeline, way, call)
        clips.append(pipeline.codec.decode(latents).float().cpu())
        pipelines.append(pipeline)
        counts.append(count())
        _tell(progress, number + 1, total, way.name)
    first = {**call, "prompt": call["prompt"][: call["batch_size"]]}
    for run in range(runs):
        for number, way in enumerate(tried):
            began = time.perf_counter(), time.process_time()
            _sample(pipelines[number], way, first).cpu()  # waits for a GPU
            seconds[number].append((time.perf_counter() - began[0], time.process_time() - began[1]))
            _tell(progress, len(tried) * (run + 1) + number + 1, total, way.name)
    results = []
    for number, way in enumerate(tried):
        alike = way.sampler is None and way.steps == tried[1].steps and number > 1
        shares = attribute_scores(read(clips[number]), wanted) if read is not None and wanted is not None else {}
        calls, rows = counts[number]
        batches = -(-len(clips[number]) // call["batch_size"])
        results.append(Result(
            way.name, way.steps, round(calls / batches), rows / len(clips[number]),
            statistics.median(clock for clock, _ in seconds[number]),
            statistics.median(processor for _, processor in seconds[number]),
            _mean_psnr(clips[number], clips[0]) if number else None,
            _mean_psnr(clips[number], clips[1]) if alike else None,
            {key: share.accuracy for key, share in shares.items()},
        ))  # fmt: skip
    return results


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as plain values."""
    return [asdict(result) for result in results]


def _sample(pipeline: ClipPipeline, way: Way, call: dict[str, Any]) -> Tensor:
    latents: Tensor = pipeline(**call, num_inference_steps=way.steps, output_type="latent").frames
    return latents


def _mean_psnr(clips: Tensor, others: Tensor) -> float | None:
    """None for equal clips."""
    value = float(psnr(clips, others).mean())
    return None if value == float("inf") else value


@contextmanager
def _counted(network: DiT, *, blocks: bool) -> Iterator[Callable[[], tuple[int, float]]]:
    """While inside, counts; gives what tells the calls of the network and the samples through a block, on average."""
    calls, rows = list[int](), list[int]()
    hooks = [network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))]
    inner = list(network.blocks) if blocks else []
    hooks += [block.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0]))) for block in inner]
    try:
        yield lambda: (len(calls), sum(rows) / len(inner) if inner else float(sum(calls)))
    finally:
        for hook in hooks:
            hook.remove()


def _tell(progress: Callable[[int, int, str], None] | None, done: int, total: int, name: str) -> None:
    if progress is not None:
        progress(done, total, name)


def _named(word: str, broadcast: Broadcast | None) -> dict[str, Any]:
    """What `use_faster` takes, with the calibrated broadcast in it."""
    ways = read_ways(word.split("+"))
    if "broadcast" in ways:
        if broadcast is None:
            raise Refused("nothing can be broadcast at this floor", where="--faster", fix="ask for a lower --floor")
        ways["broadcast"] = {"every": broadcast.every, "interval": broadcast.interval}
    return ways


def _faster(pipeline: ClipPipeline, *, how: dict[str, Any]) -> None:
    pipeline.use_faster(how)


def _guide(pipeline: ClipPipeline, **how: Any) -> None:
    pipeline.use_guidance(**how)


def _broadcast(pipeline: ClipPipeline, *, how: Broadcast) -> None:
    pipeline.enable_attention_broadcast(how)


def _first_block(pipeline: ClipPipeline, *, threshold: float) -> None:
    pipeline.enable_first_block_cache(threshold)
