"""What the figure wears: the cut of each garment, and what is sewn on."""

import numpy as np

from mmdit.clips.canvas import Field, smoothstep
from mmdit.clips.cloth import Drape, Profile, Trim
from mmdit.clips.palette import SHIRT, rgb

TOPS = {
    "dress": Profile(
        ((0.838, 0.030, 0.028), (0.812, 0.066, 0.040), (0.790, 0.092, 0.050), (0.740, 0.094, 0.066),
         (0.690, 0.080, 0.060), (0.630, 0.064, 0.050), (0.590, 0.072, 0.058), (0.520, 0.108, 0.086),
         (0.400, 0.152, 0.126), (0.300, 0.186, 0.156)),
        folds=9, depth=0.42, flow=1.0, loose=0.050,
    ),
    "coat": Profile(
        ((0.842, 0.040, 0.036), (0.815, 0.078, 0.048), (0.792, 0.108, 0.062), (0.740, 0.112, 0.080),
         (0.640, 0.094, 0.072), (0.560, 0.106, 0.082), (0.400, 0.120, 0.098), (0.215, 0.138, 0.116)),
        folds=5, depth=0.26, flow=0.6, loose=0.046,
    ),
    "t-shirt and trousers": Profile(
        ((0.838, 0.032, 0.030), (0.814, 0.070, 0.042), (0.792, 0.100, 0.054), (0.740, 0.102, 0.070),
         (0.640, 0.086, 0.064), (0.560, 0.092, 0.070), (0.475, 0.104, 0.080)),
        folds=5, depth=0.10, flow=0.3,
    ),
    "skirt and top": Profile(
        ((0.838, 0.034, 0.030), (0.814, 0.070, 0.042), (0.792, 0.098, 0.052), (0.740, 0.098, 0.068),
         (0.660, 0.076, 0.058), (0.598, 0.072, 0.056)),
        folds=5, depth=0.06,
    ),
    "hoodie and shorts": Profile(
        ((0.842, 0.048, 0.044), (0.818, 0.082, 0.054), (0.794, 0.112, 0.066), (0.740, 0.118, 0.086),
         (0.640, 0.116, 0.088), (0.540, 0.118, 0.090), (0.490, 0.110, 0.084), (0.455, 0.100, 0.078)),
        folds=5, depth=0.10, flow=0.2,
    ),
}  # fmt: skip
SKIRT = Profile(
    ((0.615, 0.070, 0.055), (0.570, 0.086, 0.068), (0.500, 0.118, 0.096), (0.390, 0.158, 0.132)),
    folds=11, depth=0.45, flow=0.9, loose=0.050,
)  # fmt: skip
HIPS = Profile(((0.600, 0.078, 0.060), (0.540, 0.092, 0.072), (0.480, 0.098, 0.076), (0.430, 0.086, 0.066)))


def _neckline(skin: Field, width: float, deep: float) -> Trim:
    """A scoop of skin below the throat."""

    def trim(place: Drape, colour: Field) -> Field:
        reach = np.sqrt((place.side / width) ** 2 + ((place.height - 0.842) / deep) ** 2)
        bare = place.cover((1.0 - reach) * min(width, deep)) * place.front
        return colour + (skin * np.float32(0.95) - colour) * bare[..., None]

    return trim


def _lapels(under_colour: Field) -> Trim:
    """The open collar of a coat with its lapels, its front edge, and the slit below the last button."""

    def trim(place: Drape, colour: Field) -> Field:
        side = np.abs(place.side)
        vee = 0.050 * (place.height - 0.640) / 0.20
        slit = 0.045 * (0.440 - place.height) / 0.225
        lapel = place.cover(np.minimum(vee + 0.028 - side, place.height - 0.640)) * place.front
        colour = colour * (1.0 - 0.24 * lapel[..., None])
        edge = place.cover(0.006 - side) * place.front * 0.45
        colour = colour * (1.0 - edge[..., None])
        shirt = (place.cover(np.minimum(vee - side, place.height - 0.640)) * place.front)[..., None]
        colour = colour + (rgb(SHIRT) - colour) * shirt
        under = (place.cover(np.minimum(slit - side, 0.440 - place.height)) * place.front)[..., None]
        under = under * smoothstep(0.25, 0.6, place.facing)[..., None]
        return colour + (under_colour * np.float32(0.62) - colour) * under

    return trim


def _pouch() -> Trim:
    """The pocket and the ribbed hem of a hoodie."""

    def trim(place: Drape, colour: Field) -> Field:
        half = 0.040 + 0.35 * np.clip(0.585 - place.height, 0.0, 0.06)
        inside = np.minimum(half - np.abs(place.side), 0.045 - np.abs(place.height - 0.545))
        rim = place.cover(0.006 - np.abs(inside)) * place.front
        hem = place.cover(0.485 - place.height)
        return colour * (1.0 - 0.28 * rim - 0.12 * hem)[..., None]

    return trim


def trim_of(garment: str, skin: Field, other: Field) -> Trim:
    """Collar, opening and pocket of a garment; `skin` shows at the neck, `other` below an open coat."""
    if garment == "coat":
        return _lapels(other)
    if garment == "hoodie and shorts":
        return _pouch()
    width, deep = {"dress": (0.052, 0.062), "t-shirt and trousers": (0.040, 0.036), "skirt and top": (0.056, 0.044)}[
        garment
    ]
    return _neckline(skin, width, deep)
