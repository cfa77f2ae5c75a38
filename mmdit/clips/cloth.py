"""Garments as solids of revolution that hang from the figure, and the fabrics they are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmdit.clips.canvas import Canvas, Field, Surface, column, smoothstep
from mmdit.clips.pose import Pose, Track

PERIOD = 0.122  # of stripes and dots, in figure heights: 5 to 7 pixels on a figure in a frame of 64
SAMPLES = 28


@dataclass(frozen=True)
class Profile:
    """Half widths of a garment over its height: knots (height, to the side, to the front), from top to bottom."""

    knots: tuple[tuple[float, float, float], ...]
    folds: int = 0
    depth: float = 0.0  # how far folds tilt the cloth at the hem
    flow: float = 0.0  # how far the hem follows swing and spin
    loose: float = 0.0  # room kept around the legs; 0: the garment ends above them

    def table(self) -> tuple[Field, Field, Field]:
        """Height, side and front half width at SAMPLES places, evenly from top to bottom, smoothly joined."""
        knots = np.asarray(self.knots, np.float32)
        top, bottom = knots[0, 0], knots[-1, 0]
        height = np.linspace(top, bottom, SAMPLES, dtype=np.float32)
        fine = np.linspace(top, bottom, 4 * SAMPLES)
        kernel = np.hanning(9)[1:-1] / np.hanning(9)[1:-1].sum()
        widths = []
        for i in (1, 2):
            raw = np.interp(-fine, -knots[:, 0], knots[:, i])
            even = np.convolve(np.pad(raw, 3, mode="edge"), kernel, mode="valid")
            widths.append(np.interp(-height, -fine, even).astype(np.float32))
        return height, widths[0], widths[1]


@dataclass
class Drape:
    """What a trim sees of a garment: heights and sideways places in figure heights, 1 where the front is seen."""

    height: Field
    side: Field
    front: Field
    facing: Field  # 1 where the cloth faces the camera, 0 where it turns away
    pixel: Field  # figure heights per pixel, (frame, 1, 1)

    def cover(self, inside: Field) -> Field:
        """Anti-aliased coverage of the places where `inside` (figure heights) is positive."""
        return np.clip(0.5 + inside / self.pixel, 0.0, 1.0)


Fabric = Callable[[Surface], Field]
Trim = Callable[[Drape, Field], Field]


def fabric(
    pattern: str, colour: Field, second: Field, scale: Track, girth: Callable[[Field], Field] | None = None
) -> Fabric:
    """The colour of cloth at a place. `girth` gives the radius at a way along the cloth, both in figure heights."""
    if pattern == "plain":
        return lambda place: colour
    period = column(PERIOD * scale, len(scale))

    def mixed(mask: Field) -> Field:
        return colour + (second - colour) * mask[..., None]

    def stripes(place: Surface) -> Field:
        wave = np.cos(2 * np.pi * (place.along / period - 0.45)) - 0.12
        return mixed(np.clip(0.5 + wave * period / (2 * np.pi), 0.0, 1.0))

    def dots(place: Surface) -> Field:
        row = np.floor(place.along / period)
        down = place.along - (row + 0.5) * period
        across = place.turn * place.radius
        if girth is not None:
            middle = girth((row + 0.5) * PERIOD)
            count = np.maximum(2.0, np.round(2 * np.pi * middle / (1.05 * PERIOD)))
            cell = place.turn * count / (2 * np.pi) + 0.5 * np.mod(row, 2.0)
            across = (cell - np.round(cell)) * (2 * np.pi / count) * middle * scale[:, None, None]
        away = np.sqrt(down * down + across * across)
        return mixed(np.clip(0.5 + 0.30 * period - away, 0.0, 1.0))

    return stripes if pattern == "stripes" else dots


def girth_of(profile: Profile) -> Callable[[Field], Field]:
    """The mean radius of a profile at a way from its top, both in figure heights."""
    height, side, front = profile.table()
    return lambda way: np.interp(way, height[0] - height, (side + front) / 2).astype(np.float32)


def _outline(pose: Pose, profile: Profile) -> tuple[Field, Field, Field, Field]:
    """Screen heights, left and right edges (frame, sample) and half widths in pixels of a garment."""
    f = len(pose.yaw)
    height, side, front = profile.table()
    joints = pose.joints
    pelvis, chest = joints["pelvis"], joints["chest"]
    part = (height[None, :, None] - pelvis[:, None, 1:2].mean()) / 0.305
    axis = pelvis[:, None] + (chest - pelvis)[:, None] * np.maximum(part, 0.0)
    below = np.maximum(-part, 0.0)
    feet = 0.5 * (joints["left_ankle"] + joints["right_ankle"])
    axis = axis + (feet - pelvis)[:, None] * np.asarray([0.45, 0.0, 0.0]) * np.minimum(below, 1.0)
    axis = axis + pose.swing[:, None] * profile.flow * below**1.5
    rise = np.where(part > 0, 0.305 * part * (chest[:, None, 1:2] - pelvis[:, None, 1:2]) / 0.305, 0.305 * part)
    axis[..., 1] = (pelvis[:, None, 1:2] + rise)[..., 0]
    cos, sin = np.cos(pose.yaw)[:, None], np.sin(pose.yaw)[:, None]
    flare = 1.0 + profile.flow * 0.055 * np.abs(np.broadcast_to(pose.spin, (f,)))[:, None] * below[..., 0]
    half = np.sqrt((side * cos) ** 2 + (front * sin) ** 2) * flare * pose.scale[:, None]
    across = axis[..., 0] * cos + axis[..., 2] * sin
    deep = axis[..., 2] * cos - axis[..., 0] * sin
    middle = pose.foot_x[:, None] + pose.scale[:, None] * across
    ys = pose.foot_y[:, None] - pose.scale[:, None] * (axis[..., 1] - 0.13 * deep)
    left, right = middle - half, middle + half
    if profile.loose:
        room = (profile.loose * pose.scale)[:, None] * smoothstep(0.0, 0.5, below[..., 0].astype(np.float32))
        for name in ("left", "right"):
            chain = [pose.screen(joints[f"{name}_{joint}"]) for joint in ("hip", "knee", "ankle")]
            at = np.stack([np.interp(ys[i], [c[i, 1] for c in chain], [c[i, 0] for c in chain]) for i in range(f)])
            lower = below[..., 0] > 0.1
            left = np.where(lower, np.minimum(left, at - room), left)
            right = np.where(lower, np.maximum(right, at + room), right)
    return ys.astype(np.float32), left.astype(np.float32), right.astype(np.float32), half.astype(np.float32)


def drape(
    canvas: Canvas,
    pose: Pose,
    profile: Profile,
    cloth: Fabric,
    *,
    trim: Trim | None = None,
    phase: float = 0.0,
    dim: float = 1.0,
) -> None:
    """Draws a garment with the given profile; `trim` paints collars, openings and pockets over the fabric."""
    f = canvas.frames
    ys, left, right, half = _outline(pose, profile)
    curve = 0.16 * half[:, -1]
    box = canvas.patch(left.min(1), right.max(1), ys[:, 0] - 1, ys[:, -1] + curve + 2)
    rows = box.y[..., 0]
    edges = [np.stack([np.interp(rows[i], ys[i], edge[i]) for i in range(f)]) for edge in (left, right, half)]
    lo, hi, radius = (edge.astype(np.float32)[..., None] for edge in edges)
    slope_l, slope_r = (np.gradient(edge, axis=1) for edge in (lo, hi))
    distance = np.maximum((lo - box.x) / np.sqrt(1 + slope_l**2), (box.x - hi) / np.sqrt(1 + slope_r**2))
    dx = np.clip((2 * box.x - lo - hi) / np.maximum(hi - lo, 1e-3), -0.99, 0.99)
    facing = np.sqrt(1.0 - dx * dx)
    beta = np.arcsin(dx) - column(pose.yaw, f)
    beta -= 2 * np.pi * np.round(beta / (2 * np.pi))
    top, bottom = column(ys[:, 0], f), column(ys[:, -1], f)
    down = np.clip((box.y - top) / (bottom - top), 0.0, 1.2)
    below = smoothstep(0.25, 1.0, np.clip(down, 0, 1))
    lag = np.clip(column(pose.spin, f) * profile.flow * 0.05, -0.6, 0.6) * below
    fold = profile.folds * (beta + lag) + 6.28 * phase
    hem = bottom + column(curve, f) * facing + 0.10 * profile.depth * column(curve, f) * np.cos(fold)
    alpha = np.clip(0.5 - np.maximum(distance, np.maximum(box.y - hem, top - box.y)), 0.0, 1.0)
    tilt = profile.depth * below * np.sin(fold) * facing
    crease = 0.05 * np.sin(7.0 * down + 2.0 * dx + 6.28 * phase) * (1.0 - below)
    nx = np.clip(0.92 * dx + tilt + crease, -0.97, 0.97)
    ny = np.clip(0.22 * (0.45 - down) - crease, -0.2, 0.2)
    scale = column(pose.scale, f)
    along = box.y - top - 0.6 * column(curve, f) * facing * below
    colour = cloth(Surface(along, beta + 0.5 * lag, radius, box.x, box.y))
    if trim is not None:
        height = profile.knots[0][0] - (box.y - top) / scale
        seen = np.clip(np.cos(beta) * 4.0, 0.0, 1.0)
        colour = trim(Drape(height, np.sin(beta) * radius / scale, seen, facing, 1.0 / scale), colour)
    shade = canvas.lit(nx, ny) * dim
    canvas.blend(box, colour * shade[..., None], alpha)
