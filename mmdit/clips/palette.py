"""The colours of made clips: of cloth, of people and of what they wear besides."""

from typing import TypeVar

import numpy as np

from mmdit.clips.canvas import Field

T = TypeVar("T")
Colour = tuple[int, int, int]

PALETTE: dict[str, tuple[Colour, Colour]] = {  # the cloth, and its stripes and dots
    "red": ((206, 36, 46), (246, 240, 228)),
    "yellow": ((246, 206, 44), (62, 44, 70)),
    "green": ((40, 138, 62), (246, 240, 228)),
    "teal": ((0, 166, 178), (246, 240, 228)),
    "blue": ((42, 76, 206), (246, 240, 228)),
    "purple": ((128, 56, 172), (246, 240, 228)),
    "pink": ((246, 146, 190), (62, 44, 70)),
    "black": ((38, 38, 44), (236, 232, 224)),
}
SKINS: tuple[Colour, ...] = ((246, 214, 190), (232, 190, 158), (206, 156, 120), (162, 112, 80), (112, 76, 58))
HAIRS: tuple[Colour, ...] = ((42, 36, 38), (74, 50, 40), (122, 80, 52), (214, 178, 112), (142, 68, 42), (168, 164, 162))
STYLES = ("short", "bob", "long", "bun", "ponytail")
NEUTRALS: tuple[Colour, ...] = ((78, 80, 88), (126, 129, 138), (188, 191, 198))
SHOES: tuple[Colour, ...] = ((52, 46, 48), (232, 230, 228), (120, 92, 72))
SHIRT: Colour = (238, 236, 232)


def rgb(colour: Colour) -> Field:
    """A colour of 0 to 255 in [0, 1]."""
    return np.asarray(colour, np.float32) / np.float32(255.0)


def pick(options: tuple[T, ...], value: float) -> T:
    """The option that a number in [0, 1) falls on."""
    return options[int(value * len(options)) % len(options)]
