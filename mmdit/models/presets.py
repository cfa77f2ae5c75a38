"""Networks by name: the twelve sizes of the DiT paper, and a tiny one for tests and demos."""

import difflib
from typing import Any

from mmdit.errors import Refused
from mmdit.models.dit import DiT

# name: (depth, hidden_size, num_heads)
SIZES = {
    "DiT-S": (12, 384, 6),
    "DiT-B": (12, 768, 12),
    "DiT-L": (24, 1024, 16),
    "DiT-XL": (28, 1152, 16),
}

PRESETS: dict[str, dict[str, Any]] = {
    f"{name}/{patch}": {
        "depth": depth,
        "hidden_size": width,
        "num_heads": heads,
        "patch_size": (1, patch, patch),
    }
    for name, (depth, width, heads) in SIZES.items()
    for patch in (2, 4, 8)
}
PRESETS["tiny"] = {"depth": 2, "hidden_size": 64, "num_heads": 4, "patch_size": (1, 2, 2)}


def create_model(name: str, *, sample_size: tuple[int, int, int], in_channels: int, **options: Any) -> DiT:
    """A new network of a preset's size; `options` are those of `DiT` and override the preset's.

    Raises:
        Refused: no such preset; the message names the nearest one.
    """
    return DiT(sample_size=sample_size, in_channels=in_channels, **{**preset_options(name), **options})


def preset_options(name: str) -> dict[str, Any]:
    """Depth, width, heads and patch of a preset; Refused, naming the nearest one, where there is no such preset."""
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise Refused(
            "unknown model preset", got=repr(name), expected=f"one of {', '.join(PRESETS)}", fix=f"try {nearest[0]}"
        )
    return PRESETS[name]
