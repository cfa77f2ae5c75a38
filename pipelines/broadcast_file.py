"""broadcast.json: how far attention can be broadcast with some weights, kept beside them.

In a pipeline folder it lies with the weights. A checkpoint is sealed by its manifest, so that of its weights lies next
to it: checkpoints/step-0001500-ema-broadcast.json.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit import files
from mmdit.errors import Refused
from mmdit.models.caching import Broadcast

BROADCAST = "broadcast.json"
BROADCAST_FORMAT = 1


@dataclass(frozen=True)
class StoredBroadcast:
    """What the file says: the settings, the floor and the lowest PSNR (dB; None for equal clips), and the sampler,
    steps and guidance that they were found with."""

    how: Broadcast
    floor: float
    psnr: float | None
    found_with: dict[str, Any]
    origin: dict[str, Any]


def broadcast_path(weights_folder: Path, weights: str | None) -> Path:
    """Where the file lies, or is to lie.

    Args:
        weights_folder: a checkpoint, or a pipeline folder.
        weights: of a checkpoint "ema" or "raw"; None for a pipeline folder.
    """
    folder = weights_folder.absolute()
    return folder / BROADCAST if weights is None else folder.with_name(f"{folder.name}-{weights}-{BROADCAST}")


def read_stored(path: str | Path, origin: dict[str, Any] | None) -> StoredBroadcast:
    """What the file says; Refused for a damaged one, or one of other weights than `origin` names."""
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != BROADCAST_FORMAT:
            raise Refused("a broadcast of another format", where=path, got=stored["format"], expected=BROADCAST_FORMAT)
        low, high = stored["interval"]
        found = StoredBroadcast(
            Broadcast(stored["every"], (float(low), float(high))),
            stored.get("floor"), stored.get("psnr"), dict(stored.get("found_with") or {}), stored["origin"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("no whole broadcast settings", where=path, got=f"{type(error).__name__}: {error}") from None
    now = weights_of(origin)
    if found.origin != now:
        raise Refused("the broadcast was calibrated for other weights", where=path, got=found.origin, expected=now,
                      fix="calibrate it anew: mmdit calibrate")  # fmt: skip
    return found


def read_broadcast(path: str | Path, origin: dict[str, Any] | None) -> Broadcast:
    """The calibrated settings in a file; Refused as `read_stored`."""
    return read_stored(path, origin).how


def copy_broadcast(path: Path, to: Path, origin: dict[str, Any] | None) -> None:
    """Writes the file anew at `to`; Refused for one that is not of the weights that `origin` names."""
    read_stored(path, origin)
    if path.absolute() != to.absolute():
        to.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(to, path.read_text(encoding="utf-8"))


def missing_broadcast(source: str | Path, weights: str | None) -> Refused:
    """What is said where nothing was calibrated; it ends with the command that does it."""
    more = " --weights raw" if weights == "raw" else ""
    return Refused("attention broadcast was not calibrated for these weights", where=source,
                   fix=f"do it once: mmdit calibrate {shlex.quote(str(source))}{more}")  # fmt: skip


def unlike(found_with: dict[str, Any], now: dict[str, Any]) -> str | None:
    """One line on how a call differs from the one that the broadcast was calibrated by; None where it does not."""
    other = [f"{found_with[key]} {name}" for key, name in TOLD.items() if found_with.get(key, now[key]) != now[key]]
    if not other:
        return None
    return f"attention broadcast was calibrated with {', '.join(other)}: clips may lie below its floor"


TOLD = {"num_inference_steps": "steps", "sampler": "as sampler", "guidance_scale": "as guidance"}


def sampler_of(pipeline: Any) -> str:
    """The scheduler's class, and what of its settings makes it another sampler."""
    kind = pipeline.scheduler.config.get("algorithm_type")
    return type(pipeline.scheduler).__name__ + (f" ({kind})" if kind else "")


def weights_of(origin: dict[str, Any] | None) -> dict[str, Any]:
    """What of a pipeline's origin says which weights it has."""
    return {key: (origin or {}).get(key) for key in ("checkpoint", "weights")}
