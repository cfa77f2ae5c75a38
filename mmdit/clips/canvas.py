"""Anti-aliased, softly lit shapes, drawn into all frames of a clip at once.

Every shape is a signed distance in pixels, evaluated only in a small box that follows the shape from frame to frame.
Shapes are lit as the solids whose outline they are: a limb as a rounded cone, a garment as a solid of revolution.

Shapes of arrays: (frame,) for what changes in time, (frame, row, column) for fields, colours in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # of float32, or float64 where that is at hand
AMBIENT, DIFFUSE = 0.56, 0.52


def smoothstep(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, a smooth step between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return (t * t * (3.0 - 2.0 * t)).astype(np.float32)


def column(value: Field | float, frames: int) -> Field:
    """A number, or one per frame, as (frame, 1, 1)."""
    return np.broadcast_to(np.asarray(value, np.float32), (frames,)).reshape(frames, 1, 1)


@dataclass
class Patch:
    """A box that moves with a shape: where it lies in the canvas, and the pixel centres in it."""

    index: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    x: Field  # (frame, 1, column)
    y: Field  # (frame, row, 1)


@dataclass
class Surface:
    """What a material sees of a shape: `along` in pixels, `turn` the angle round the axis, `radius` in pixels."""

    along: Field
    turn: Field
    radius: Field
    x: Field
    y: Field


Material = Callable[[Surface], Field]


class Canvas:
    """All frames of a clip while they are drawn."""

    def __init__(self, background: Field, light: tuple[float, float, float]) -> None:
        """`background` is (frame, height, width, 3); `light` points toward the light (right, up, to the viewer)."""
        self.frames, self.height, self.width = background.shape[:3]
        self.margin = max(8, self.width // 3)
        edge = (self.margin, self.margin)
        self.pixels = np.pad(background, ((0, 0), edge, edge, (0, 0)))
        length = float(np.sqrt(sum(part * part for part in light)))
        self.light = tuple(part / length for part in light)

    def result(self) -> NDArray[np.uint8]:
        m = self.margin
        inner = self.pixels[:, m : m + self.height, m : m + self.width]
        return (np.clip(inner, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def patch(self, left: Field, right: Field, top: Field, bottom: Field) -> Patch:
        """A box of one size for all frames that covers the given bounds, (frame,) each, in each frame."""
        f = self.frames
        starts = [np.floor(np.broadcast_to(edge, (f,))).astype(int) - 1 for edge in (left, top)]
        ends = [np.ceil(np.broadcast_to(edge, (f,))).astype(int) + 1 for edge in (right, bottom)]
        index = []
        for start, end, size in zip(starts, ends, (self.width, self.height), strict=True):
            full = size + 2 * self.margin
            extent = int(np.clip((end - start).max(), 1, full))
            start = np.clip(start + self.margin, 0, full - extent)
            index.append(start[:, None] + np.arange(extent)[None, :])
        columns, rows = index[0][:, None, :], index[1][:, :, None]
        offset = np.float32(0.5 - self.margin)
        where = (np.arange(f)[:, None, None], rows, columns)
        return Patch(where, columns.astype(np.float32) + offset, rows.astype(np.float32) + offset)

    def blend(self, patch: Patch, colour: Field, alpha: Field) -> None:
        """Lays `colour` ((3,) or (frame, row, column, 3)) over the patch with coverage `alpha`."""
        under = self.pixels[patch.index]
        under += (colour - under) * alpha[..., None]
        self.pixels[patch.index] = under

    def lit(self, nx: Field, ny: Field) -> Field:
        """Brightness of a surface whose normal has the screen components nx (right) and ny (up)."""
        nz = np.sqrt(np.maximum(0.0, 1.0 - nx * nx - ny * ny))
        lx, ly, lz = self.light
        return (AMBIENT + DIFFUSE * np.maximum(0.0, nx * lx + ny * ly + nz * lz) + 0.07 * ny).astype(np.float32)

    def limb(
        self,
        start: Field,
        end: Field,
        radii: tuple[Field | float, Field | float],
        material: Material | Field,
        *,
        weight: Field | float = 1.0,
        dim: tuple[float, float] = (1.0, 1.0),
        offset: Field | float = 0.0,
    ) -> None:
        """A rounded cone from `start` to `end` ((frame, 2) pixels). `dim` darkens it at its start and at its end."""
        if not np.any(weight):
            return
        f = self.frames
        r0, r1 = (np.broadcast_to(np.asarray(r, np.float32), (f,)) for r in radii)
        reach = np.maximum(r0, r1) + 1.0
        low, high = np.minimum(start, end), np.maximum(start, end)
        box = self.patch(low[:, 0] - reach, high[:, 0] + reach, low[:, 1] - reach, high[:, 1] + reach)
        span = end - start
        length = np.sqrt((span**2).sum(1)) + 1e-4
        ux, uy = column(span[:, 0] / length, f), column(span[:, 1] / length, f)
        dx, dy = box.x - column(start[:, 0], f), box.y - column(start[:, 1], f)
        along = dx * ux + dy * uy
        t = np.clip(along / column(length, f), 0.0, 1.0)
        radius = column(r0, f) + column(r1 - r0, f) * t
        rest = along - t * column(length, f)
        side = dx * -uy + dy * ux
        distance = np.sqrt(rest * rest + side * side) - radius
        alpha = np.clip(0.5 - distance, 0.0, 1.0) * column(weight, f)
        across = np.clip(side / radius, -0.98, 0.98)
        # the round ends are lit like the rest, so that a bent limb shows no seam at its joint
        shade = self.lit(across * -uy * 0.95, -across * ux * 0.95) * (dim[0] + (dim[1] - dim[0]) * t)
        shade *= 1.0 - 0.20 * across**4
        place = Surface(along + column(offset, f), np.arcsin(across), radius, box.x, box.y)
        colour = material(place) if callable(material) else material
        self.blend(box, colour * shade[..., None], alpha)

    def ball(
        self, centre: Field, radii: tuple[Field | float, Field | float], colour: Field, *, weight: Field | float = 1.0
    ) -> None:
        """A lit ellipsoid at `centre` ((frame, 2) pixels)."""
        if not np.any(weight):
            return
        box, p, q, alpha = self.oval(centre, radii)
        shade = self.lit(np.clip(p, -1, 1) * 0.9, np.clip(-q, -1, 1) * 0.9)
        self.blend(box, colour * shade[..., None], alpha * column(weight, self.frames))

    def oval(self, centre: Field, radii: tuple[Field | float, Field | float]) -> tuple[Patch, Field, Field, Field]:
        """Patch, the coordinates p (right) and q (down) in units of the radii, and the coverage of an ellipse."""
        f = self.frames
        rx, ry = (np.broadcast_to(np.asarray(r, np.float32), (f,)) for r in radii)
        box = self.patch(centre[:, 0] - rx - 1, centre[:, 0] + rx + 1, centre[:, 1] - ry - 1, centre[:, 1] + ry + 1)
        p, q = (box.x - column(centre[:, 0], f)) / column(rx, f), (box.y - column(centre[:, 1], f)) / column(ry, f)
        norm = np.sqrt(p * p + q * q) + 1e-4
        slope = np.sqrt((p / column(rx, f)) ** 2 + (q / column(ry, f)) ** 2) + 1e-6
        distance = norm * (norm - 1.0) / slope
        return box, p, q, np.clip(0.5 - distance, 0.0, 1.0)

    def glow(
        self, centre: Field, radii: tuple[Field | float, Field | float], colour: Field, strength: Field | float
    ) -> None:
        """A soft spot without an edge: a shadow or a glimmer of light."""
        f = self.frames
        rx, ry = (np.broadcast_to(np.asarray(r, np.float32), (f,)) for r in radii)
        box = self.patch(centre[:, 0] - 2 * rx, centre[:, 0] + 2 * rx, centre[:, 1] - 2 * ry, centre[:, 1] + 2 * ry)
        p, q = (box.x - column(centre[:, 0], f)) / column(rx, f), (box.y - column(centre[:, 1], f)) / column(ry, f)
        fall = np.clip(1.0 - (p * p + q * q) / 4.0, 0.0, 1.0) ** 3
        self.blend(box, colour, (fall * column(strength, f)).astype(np.float32))
