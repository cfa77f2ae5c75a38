"""What the pages share: the templates, their filters, and files as data: addresses."""

import base64
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TYPES = {".mp4": "video/mp4", ".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}


@cache
def environment() -> Environment:
    """What renders the pages: the templates beside this module, and their filters."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "seconds": seconds, "quantity": quantity, "sentence": sentence}
    return made


def data_uri(path: Path) -> str:
    """A file of one of TYPES as a data: address; OSError where it cannot be read."""
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def percent(share: float) -> str:
    """A share as 100 %, 99.2 % or 7.1 %."""
    value = 100 * share
    # 99.96 % must not be shown as 100 %, nor 0.04 % as 0 %.
    if 0 < share < 1:
        value = min(99.9, max(0.1, value))
    return f"{value:.0f} %" if share in (0, 1) else f"{value:.1f} %"


def seconds(value: float) -> str:
    """A span of time as 0.4 s, 31 s, 4 min 40 s or 2 h 5 min."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def quantity(figure: Mapping[str, Any]) -> str:
    """A figure of the summary with its unit."""
    value, unit = figure["value"], figure.get("unit") or ""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if unit == "share":
        return percent(value)
    if unit in ("s", "seconds"):
        return seconds(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def sentence(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
