"""Faster sampling without training anew: what a pipeline can be told to leave out."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mmdit.diffusion import Guidance, guided, two_passes
from mmdit.errors import Refused
from mmdit.models.caching import Broadcast, Cache, FirstBlockCache

BROADCAST_FORMAT = 1


class FasterSampling:
    """The part of `ClipPipeline` that makes it faster; what a call remembers ends with the batch it makes."""

    transformer: Any
    config: Any
    _cache: Cache | None = None
    _compiled = False
    _interval: tuple[float, float] | None = None
    _passes = 1

    def enable_attention_broadcast(self, how: Broadcast | str | Path) -> None:
        """Takes the outputs of attentions again for some steps (arXiv 2408.12588).

        Args:
            how: the settings, or the file that `mmdit.pipelines.calibration.save_broadcast` wrote for these weights.

        Raises:
            Refused: another cache is on, the blocks are compiled, or the file is damaged or of other weights.
        """
        self._refuse_second_cache()
        if self._compiled:
            raise Refused("attentions in compiled blocks cannot be broadcast", fix="load the pipeline again")
        self._cache = how if isinstance(how, Broadcast) else read_broadcast(how, self.config.origin)

    def enable_first_block_cache(self, threshold: float = 0.1) -> None:
        """Leaves out all blocks but the first where that changes less than `threshold` (`FirstBlockCache`).

        Raises:
            Refused: another cache is on, the threshold is out of range, or the network has one block only.
        """
        self._refuse_second_cache()
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
            Refused: attentions are broadcast, which compiled blocks cannot do.
        """
        if isinstance(self._cache, Broadcast):
            raise Refused("compiled blocks cannot broadcast attentions", fix="call disable_cache() first")
        for block in self.transformer.blocks:
            block.compile()
        self._compiled = True

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
        return guided(both if self._passes == 1 else two_passes(conditional, null), conditional, guidance)


def read_broadcast(path: str | Path, origin: dict[str, Any] | None) -> Broadcast:
    """The calibrated settings in a file; Refused for a damaged one, or one of other weights than `origin` names."""
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != BROADCAST_FORMAT:
            raise Refused("a broadcast of another format", where=path, got=stored["format"], expected=BROADCAST_FORMAT)
        low, high = stored["interval"]
        how, of = Broadcast(stored["every"], (float(low), float(high))), stored["origin"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("no whole broadcast settings", where=path, got=f"{type(error).__name__}: {error}") from None
    now = weights_of(origin)
    if of != now:
        raise Refused("the broadcast was calibrated for other weights", where=path, got=of, expected=now)
    return how


def weights_of(origin: dict[str, Any] | None) -> dict[str, Any]:
    """What of a pipeline's origin says which weights it has."""
    return {key: (origin or {}).get(key) for key in ("checkpoint", "weights")}
