"""Where codecs lie, and what tells one from another."""

import hashlib
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

from mmdit.errors import Refused


def fingerprint(vae: Any) -> str:
    """sha256 over class, config and weight values. Weights held in another type without loss give the same."""
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, config], sort_keys=True, default=list).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shipped_codecs() -> dict[str, Path]:
    """The codecs that come with mmdit: name to folder."""
    assets = Path(str(importlib.resources.files("mmdit"))) / "assets"
    return {folder.name.removeprefix("codec_"): folder for folder in sorted(assets.glob("codec_*"))}


def find_codec(name: str) -> tuple[str, dict[str, str]]:
    """Where diffusers is to load from: path or hub name, and the options to say so with.

    Raises:
        Refused: a name that is none of these.
    """
    shipped = shipped_codecs()
    if name in shipped:
        return str(shipped[name]), {}
    if Path(name).is_dir():
        inner = not (Path(name) / "config.json").is_file() and (Path(name) / "vae" / "config.json").is_file()
        return name, {"subfolder": "vae"} if inner else {}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name, {}
    raise Refused(
        "no such codec", got=name, expected=f"one of {', '.join(shipped)}, a folder, or a hub name such as owner/model"
    )
