"""Which clips a source can make, said before its weights are loaded."""

import json
from typing import Any

from mmdit.latents.codec import Codec, load_codec
from mmdit.pipelines.loading import Source
from mmdit.pipelines.request import check_image_network, check_size
from mmdit.training.lora import base_folder


def check_source_size(
    source: Source, *, frames: int | None, height: int | None, width: int | None, clips: int, codec: str | None = None
) -> tuple[int, int, int] | None:
    """(frames, height, width) of clips of this size, None for those of the training clips, before weights are loaded.

    Returns None for a pipeline folder that does not say what it was trained on. Raises Refused, naming the nearest
    size, for what the model cannot make.
    """
    if source.clip is None:
        return None
    network, rules = source_rules(source, codec)
    default = source.clip["frames"], *source.clip["size"]
    size = tuple(d if asked is None else asked for d, asked in zip(default, (frames, height, width), strict=True))
    check_image_network(network, frames)
    check_size(rules, network["patch_size"], frames=size[0], height=size[1], width=size[2], clips=clips)
    return size[0], size[1], size[2]


def source_rules(source: Source, codec: str | None = None) -> tuple[dict[str, Any], Codec]:
    """The network's config, and the codec without weights, which knows sizes."""
    base = base_folder(source.folder)
    network = json.loads((base / "transformer" / "config.json").read_text(encoding="utf-8"))
    name = codec or (source.folder if source.state is None else source.state["codec"]["name"])
    return network, load_codec(name, device="meta")
