"""Faster sampling without training anew: what a pipeline can be told to leave out."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mmdit.diffusion import Guidance, guided, two_passes
from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.models.caching import Broadcast, Cache, FirstBlockCache
from mmdit.pipelines.broadcast_file import BROADCAST, copy_broadcast, missing_broadcast, read_broadcast

FIRST_BLOCK = 0.1
USABLE = {"broadcast", "first_block", "compile"}
WAYS = ("broadcast", "first-block", "compile")
KNOWN_WAYS = f"broadcast, first-block, first-block=THRESHOLD ({FIRST_BLOCK}) or compile"
log = logging.getLogger("mmdit")


class FasterSampling:
    """The part of `ClipPipeline` that makes it faster; what a call remembers ends with the batch it makes."""

    transformer: Any
    config: Any
    process: Any
    broadcast_file: Path | None = None
    """Where the calibrated broadcast of these weights lies, if not in the folder that they were loaded from."""
    _cache: Cache | None = None
    _compiled = False
    _interval: tuple[float, float] | None = None
    _passes = 1

    def enable_attention_broadcast(self, how: Broadcast | str | Path | None = None) -> None:
        """Takes the outputs of attentions again for some steps (arXiv 2408.12588).

        Args:
            how: the settings, or the file that `mmdit.pipelines.calibration.save_broadcast` wrote for these weights;
                None for the file beside the weights, which `mmdit calibrate` writes.

        Raises:
            Refused: another cache is on, the blocks are compiled, the network is no DiT, or the file is damaged, of
                other weights or missing.
        """
        self._refuse_second_cache()
        check_blocks(self.transformer)
        if self._compiled:
            raise Refused("attentions in compiled blocks cannot be broadcast", fix="load the pipeline again")
        if how is None:
            how = self._find_broadcast()
        if how is None:
            raise missing_broadcast(self.config.get("_name_or_path") or "RUN", None)
        self._cache = how if isinstance(how, Broadcast) else read_broadcast(how, self.config.origin)

    def enable_first_block_cache(self, threshold: float = FIRST_BLOCK) -> None:
        """Leaves out all blocks but the first where that changes less than `threshold` (`FirstBlockCache`).

        Raises:
            Refused: another cache is on, the threshold is out of range, the network is no DiT, or has one block only.
        """
        self._refuse_second_cache()
        check_blocks(self.transformer)
        cache = FirstBlockCache(threshold)
        cache.start(self.transformer)  # refuses a network that it cannot serve
        self._cache = cache

    def disable_cache(self) -> None:
        """Computes everything at every step, as a new pipeline does."""
        self._cache = None

    def use_guidance(self, *, interval: tuple[float, float] | None = None, passes: int = 1) -> None:
        """How guidance is done from now on.

        Args:
            interval: the (lowest, highest) timestep, of 0 to 1000, that is guided; None for all (arXiv 2404.07724).
                A step outside of it costs half.
            passes: 1 asks the network about both halves in one batch, 2 in turn, with half the memory.

        Raises:
            Refused: an empty interval, or another number of passes.
        """
        Guidance(interval=interval)
        if passes not in (1, 2):
            raise Refused("the passes of guidance are out of range", got=passes, expected="1 or 2")
        self._interval, self._passes = interval, passes

    def enable_compile(self) -> None:
        """Compiles the blocks of the network (`torch.compile`) at their next call; a new shape compiles again.

        Raises:
            Refused: attentions are broadcast, which compiled blocks cannot do, or the network is no DiT.
        """
        if isinstance(self._cache, Broadcast):
            raise Refused("compiled blocks cannot broadcast attentions", fix="call disable_cache() first")
        check_blocks(self.transformer)
        for block in self.transformer.blocks:
            block.compile()
        self._compiled = True

    def use_faster(self, ways: Mapping[str, Any] | None) -> None:
        """Switches on what `faster` says of another pipeline, or what `read_ways` read.

        Raises Refused as the `enable_...` that each stands for.
        """
        ways = {} if ways is None else ways
        known = isinstance(ways, Mapping) and set(ways) <= USABLE
        if not known:
            raise Refused("no such way to sample faster", got=repr(ways)[:60],
                          expected=f"a dict with keys of {', '.join(sorted(USABLE))}")  # fmt: skip
        if ways.get("compile"):
            self.enable_compile()
        if "broadcast" in ways:
            how = ways["broadcast"]
            self.enable_attention_broadcast(Broadcast(dict(how["every"]), tuple(how["interval"])) if how else None)
        if "first_block" in ways:
            self.enable_first_block_cache(ways["first_block"])

    @property
    def faster(self) -> dict[str, Any] | None:
        """What is switched on, as plain values for the metadata of what is made; None for nothing."""
        found: dict[str, Any] = {}
        if isinstance(self._cache, Broadcast):
            found["broadcast"] = {"every": dict(self._cache.every), "interval": list(self._cache.interval)}
        if isinstance(self._cache, FirstBlockCache):
            found["first_block"] = self._cache.threshold
        if self._compiled:
            found["compile"] = True
        return found or None

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """As in diffusers; the calibrated broadcast of these weights goes into the folder with them."""
        path = self._find_broadcast()
        if path is not None:
            try:
                copy_broadcast(path, Path(save_directory) / BROADCAST, self.config.origin)
            except Refused as error:
                log.warning("left out of the folder: %s", error)
        super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]

    def _find_broadcast(self) -> Path | None:
        if self.broadcast_file is not None:
            return self.broadcast_file
        folder = self.config.get("_name_or_path")  # where diffusers loaded it from
        return Path(folder) / BROADCAST if folder and (Path(folder) / BROADCAST).is_file() else None

    def _refuse_second_cache(self) -> None:
        if self._cache is not None:
            raise Refused("a cache is on", got=self._cache, fix="call disable_cache() first")

    def _start(self) -> Callable[..., Tensor]:
        """ask(part, x_t, timesteps, **inputs) for one sampling run: the network, its cache, if any, empty."""
        if self._cache is not None:
            return self._cache.start(self.transformer)
        return lambda part, *args, **inputs: self.transformer(*args, **inputs)

    def _guided(self, predict: Callable[..., Tensor], guidance: Guidance) -> Callable[[Tensor, Tensor], Tensor]:
        """predict(part, x_t, timesteps) with guidance, as a predict(x_t, timesteps)."""
        conditional, null, both = (partial(predict, part) for part in ("conditional", "null", "both"))
        return guided(both if self._passes == 1 else two_passes(conditional, null), conditional, guidance, self.process)


def check_blocks(network: object) -> None:
    """Refused for a network without the blocks that caches and compilation act on."""
    if not isinstance(network, DiT):
        got = type(network).__name__
        raise Refused("this makes the blocks of a DiT faster", got=got, expected="DiT", fix="sample without it")


def read_ways(words: list[str] | None) -> dict[str, Any]:
    """What `use_faster` takes, of "broadcast", "first-block", "first-block=THRESHOLD" and "compile".

    Raises Refused for another word, one of them twice, a threshold that is none, and two that exclude each other.
    """
    ways: dict[str, Any] = {}
    for word in words or ():
        name, _, value = word.partition("=")
        key = name.replace("-", "_")
        if name not in WAYS or (value and key != "first_block") or word.endswith("="):
            raise Refused("no such way to sample faster", where="--faster", got=repr(word[:40]), expected=KNOWN_WAYS)
        if key in ways:
            raise Refused("the same way to sample faster twice", where="--faster", got=repr(word[:40]))
        ways[key] = {"broadcast": None, "first_block": FIRST_BLOCK, "compile": True}[key]
        if value:
            try:
                ways[key] = FirstBlockCache(float(value)).threshold
            except ValueError as error:
                if isinstance(error, Refused):
                    raise
                raise Refused("not a threshold", where="--faster", got=repr(word[:40]), expected=KNOWN_WAYS) from None
    if "broadcast" in ways and len(ways) > 1:
        raise Refused("attention broadcast goes with no other way", where="--faster", got=" and ".join(words or ()),
                      fix="leave out the others")  # fmt: skip
    return ways
