"""The figure: body, head and hair, dressed and lit."""

from dataclasses import dataclass

import numpy as np

from mmdit.clips.canvas import Canvas, Field, Material, Patch, Surface, column, smoothstep
from mmdit.clips.cloth import Fabric, drape, fabric, girth_of
from mmdit.clips.outfits import HIPS, SKIRT, TOPS, trim_of
from mmdit.clips.palette import HAIRS, NEUTRALS, PALETTE, SHOES, SKINS, STYLES, pick, rgb
from mmdit.clips.pose import Pose, Track, point


@dataclass
class Dressed:
    """One clip's figure: its pose, its colours and what it wears."""

    canvas: Canvas
    pose: Pose
    garment: str
    cloth: Fabric  # on bodies of revolution
    sleeve: Material  # on limbs
    main: Field
    other: Field
    skin: Field
    hair: Field
    shoe: Field
    look: dict[str, float]

    def at(self, joint: str) -> Track:
        return self.pose.screen(self.pose.joints[joint])

    def size(self, part: float) -> Track:
        """A length in figure heights as pixels in each frame."""
        return (part * self.pose.scale).astype(np.float32)

    def limb(
        self,
        start: Track,
        end: Track,
        radii: tuple[float, float],
        material: Material | Field,
        *,
        weight: Track | float = 1.0,
        dim: tuple[float, float] = (1.0, 1.0),
        offset: Track | float = 0.0,
    ) -> None:
        """A limb between two screen points, with radii in figure heights; the rest as for `Canvas.limb`."""
        sizes = (self.size(radii[0]), self.size(radii[1]))
        self.canvas.limb(start, end, sizes, material, weight=weight, dim=dim, offset=offset)


def _shadow(who: Dressed) -> None:
    pose, f = who.pose, len(who.pose.yaw)
    ground = point(0.0, 0.0, 0.0, f) + 0.5 * (pose.joints["left_ankle"] + pose.joints["right_ankle"]) * [1.0, 0.0, 1.0]
    middle = pose.screen(ground)
    middle[:, 0] -= who.canvas.light[0] * who.size(0.10)
    dark = rgb((44, 40, 48))
    who.canvas.glow(middle, (who.size(0.17), who.size(0.040)), dark, 0.42)
    for side in ("left", "right"):
        ankle = pose.joints[f"{side}_ankle"]
        foot = 0.5 * (ankle + pose.joints[f"{side}_toe"])
        lift = np.clip(1.0 - (ankle[:, 1] - 0.035) / 0.09, 0.2, 1.0)
        spot = pose.screen(foot * [1.0, 0.0, 1.0])
        who.canvas.glow(spot, (who.size(0.052), who.size(0.018)), dark, 0.75 * lift)


def _leg(who: Dressed, near: bool) -> None:
    """The leg nearer to the camera, or the farther one."""
    pose = who.pose
    left_near = pose.depth(pose.joints["left_hip"]) >= pose.depth(pose.joints["right_hip"])
    first = (left_near == near)[:, None]
    hip, knee, ankle, toe = (
        np.where(first, who.at(f"left_{part}"), who.at(f"right_{part}")) for part in ("hip", "knee", "ankle", "toe")
    )
    dark = 1.0 if near else 0.86
    covered = who.garment in ("coat", "t-shirt and trousers")
    dim = (0.80 * dark, dark) if who.garment != "coat" else (0.7 * dark, 0.95 * dark)
    who.limb(ankle, toe, (0.022, 0.017), who.shoe, dim=(dark, dark))
    if covered:
        who.limb(knee, ankle, (0.041, 0.032), who.other, dim=(dark, dark))
        who.limb(hip, knee, (0.058, 0.042), who.other, dim=dim)
        return
    who.limb(knee, ankle, (0.032, 0.018), who.skin, dim=(0.84 * dark, dark))
    who.limb(hip, knee, (0.050, 0.032), who.skin, dim=dim)
    if who.garment == "hoodie and shorts":
        cuff = hip + (knee - hip) * 0.72
        who.limb(hip, cuff, (0.060, 0.058), who.other, dim=(0.9 * dark, dark))


def _arm(who: Dressed, side: str, weight: Track | float, dark: float) -> None:
    shoulder, elbow, wrist, hand = (who.at(f"{side}_{part}") for part in ("shoulder", "elbow", "wrist", "hand"))
    dim = (dark, dark)
    who.limb(wrist, hand, (0.017, 0.014), who.skin, weight=weight, dim=dim)
    reach = np.sqrt(((elbow - shoulder) ** 2).sum(1))
    if who.garment in ("coat", "hoodie and shorts"):
        who.limb(elbow, wrist, (0.032, 0.026), who.sleeve, weight=weight, dim=dim, offset=reach)
        who.limb(shoulder, elbow, (0.038, 0.033), who.sleeve, weight=weight, dim=dim)
        return
    who.limb(elbow, wrist, (0.022, 0.016), who.skin, weight=weight, dim=dim)
    who.limb(shoulder, elbow, (0.027, 0.022), who.skin, weight=weight, dim=dim)
    if who.garment == "t-shirt and trousers":
        who.limb(shoulder, shoulder + (elbow - shoulder) * 0.62, (0.036, 0.036), who.sleeve, weight=weight, dim=dim)
    elif who.garment == "skirt and top":
        cuff = elbow + (wrist - elbow) * 0.25
        who.limb(elbow, cuff, (0.030, 0.030), who.sleeve, weight=weight, dim=dim, offset=reach)
        who.limb(shoulder, elbow, (0.033, 0.030), who.sleeve, weight=weight, dim=dim)


def _arms(who: Dressed, front: bool) -> None:
    """Both arms behind the body, or those that are in front of it; crossing over is gradual."""
    for side in ("left", "right"):
        shoulder, elbow, wrist = (who.pose.joints[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist"))
        middle = (shoulder + elbow + wrist) / 3
        nearness = smoothstep(-0.07, -0.03, who.pose.depth(middle).astype(np.float32))
        _arm(who, side, nearness if front else 1.0, 1.0 if front else 0.88)


def _clothes(who: Dressed) -> None:
    canvas, pose, top = who.canvas, who.pose, TOPS[who.garment]

    def other(place: Surface) -> Field:
        return who.other

    if who.garment in ("t-shirt and trousers", "hoodie and shorts"):
        drape(canvas, pose, HIPS, other)
    elif who.garment == "skirt and top":
        drape(canvas, pose, SKIRT, other, phase=who.look["fold"])
    trim = trim_of(who.garment, who.skin, who.other)
    drape(canvas, pose, top, who.cloth, trim=trim, phase=who.look["fold"])


def _hood(who: Dressed, weight: Track | float) -> None:
    """The hood of a hoodie, which lies on the shoulders behind the neck."""
    f = len(who.pose.yaw)
    place = who.pose.screen(who.pose.joints["neck"] + point(0.0, 0.016, -0.038, f))
    wide = np.sqrt((0.082 * np.cos(who.pose.yaw)) ** 2 + (0.062 * np.sin(who.pose.yaw)) ** 2)
    who.canvas.ball(place, (wide * who.pose.scale, who.size(0.040)), who.main * 0.90, weight=weight)


def _tresses(who: Dressed, weight: Track | float) -> None:
    """The hair that hangs or stands off the head, seen before or behind the body."""
    f, style = len(who.pose.yaw), pick(STYLES, who.look["style"])
    head = who.pose.joints["head"]
    swing = who.pose.swing * 0.8
    if style == "bun":
        knot = who.pose.screen(head + point(0.0, 0.058, -0.058, f))
        who.canvas.ball(knot, (who.size(0.032), who.size(0.030)), who.hair, weight=weight)
        return
    if style == "ponytail":
        root = who.pose.screen(head + point(0.0, 0.030, -0.078, f))
        tip = who.pose.screen(head + point(0.0, -0.130, -0.100, f) + swing * 1.5)
        who.limb(root, tip, (0.022, 0.013), who.hair, weight=weight)
        return
    length, width = {"short": (0.020, 0.060), "bob": (0.072, 0.066), "long": (0.165, 0.062)}[style]
    turned = np.abs(np.sin(who.pose.yaw))
    top = who.pose.screen(head + point(0.0, 0.018, -0.014, f))
    end = who.pose.screen(head + point(0.0, -length, -0.032, f) + swing)
    radius = (width - 0.014 * turned) * who.pose.scale
    who.canvas.limb(top, end, (radius, radius * 0.86), who.hair, weight=weight, dim=(1.0, 0.86))


def _sphere(who: Dressed, centre: Track, radii: tuple[Track, Track]) -> tuple[Patch, Field, Field, Field, Field, Field]:
    """An ellipse read as a ball: patch, right and down in [-1, 1], coverage, and how far to the front and the side."""
    f = len(who.pose.yaw)
    box, p, q, alpha = who.canvas.oval(centre, radii)
    inside = np.minimum(np.sqrt(p * p + q * q), 0.999)
    z = np.sqrt(1.0 - inside * inside)
    cos, sin = column(np.cos(who.pose.yaw), f), column(np.sin(who.pose.yaw), f)
    return box, p, q, alpha, p * sin + z * cos, p * cos - z * sin


def _head(who: Dressed) -> None:
    """A ball with eyes and a mouth where the face is seen, under a slightly larger cap of hair."""
    canvas, pose, f = who.canvas, who.pose, len(who.pose.yaw)
    centre = who.at("head")
    wide = np.sqrt((0.058 * np.cos(pose.yaw)) ** 2 + (0.066 * np.sin(pose.yaw)) ** 2) * pose.scale
    tall = who.size(0.078)
    nose = pose.screen(pose.joints["head"] + point(0.0, -0.010, 0.064, f))
    canvas.ball(nose, (who.size(0.010), who.size(0.012)), who.skin)
    box, p, q, alpha, front, side = _sphere(who, centre, (wide, tall))
    sharp = column(pose.scale * 0.065, f)
    colour: Field = np.broadcast_to(who.skin, (*p.shape[:1], q.shape[1], p.shape[2], 3)).astype(np.float32)
    eye, mouth = rgb((58, 40, 40)), rgb((172, 62, 68))
    for at, down, size, flat, ink, strength in (
        (-0.40, -0.02, 0.15, 1.2, eye, 0.85), (0.40, -0.02, 0.15, 1.2, eye, 0.85), (0.0, 0.50, 0.17, 2.0, mouth, 0.5),
    ):  # fmt: skip
        away = np.sqrt((side - at) ** 2 + ((q - down) * flat) ** 2)
        spot = strength * np.clip(0.5 + (size - away) * sharp, 0.0, 1.0) * np.clip(front * 3.0, 0.0, 1.0)
        colour = colour + (ink - colour) * spot[..., None]
    shade = canvas.lit(np.clip(p, -1, 1) * 0.85, np.clip(-q, -1, 1) * 0.6)
    canvas.blend(box, colour * shade[..., None], alpha)
    crown = pose.screen(pose.joints["head"] + point(0.0, 0.005, -0.006, f))
    box, p, q, alpha, front, side = _sphere(who, crown, (wide * 1.09, tall * 1.05))
    cap = -0.74 * q - 0.67 * front + 0.08 + 0.12 * who.look["fringe"] + 0.05 * np.abs(side)
    shade = canvas.lit(np.clip(p, -1, 1) * 0.85, np.clip(-q, -1, 1) * 0.6)
    gloss = 0.10 * smoothstep(0.75, 1.0, canvas.lit(p * 0.7, -q * 0.7 + 0.25))
    canvas.blend(box, who.hair * shade[..., None] + gloss[..., None], alpha * np.clip(0.5 + cap * sharp, 0.0, 1.0))


def draw(canvas: Canvas, pose: Pose, garment: str, colour: str, pattern: str, look: dict[str, float]) -> None:
    """Draws the figure of a clip over the background that the canvas holds."""
    main, second = (rgb(part) for part in PALETTE[colour])
    neutrals = NEUTRALS if colour != "black" else NEUTRALS[1:]
    who = Dressed(
        canvas, pose, garment,
        fabric(pattern, main, second, pose.scale, girth_of(TOPS[garment])), fabric(pattern, main, second, pose.scale),
        main, rgb(pick(neutrals, look["neutral"])), rgb(pick(SKINS, look["skin"])), rgb(pick(HAIRS, look["hair"])),
        rgb(pick(SHOES, look["shoe"])), look,
    )  # fmt: skip
    back = smoothstep(-0.10, 0.30, -np.cos(pose.yaw).astype(np.float32))
    hooded = garment == "hoodie and shorts"
    _shadow(who)
    _tresses(who, 1.0)
    _arms(who, front=False)
    _leg(who, near=False)
    _leg(who, near=True)
    _clothes(who)
    if hooded:
        _hood(who, 1.0)
    throat = who.at("neck") + [0, 1] * who.size(0.012)[:, None]
    who.limb(throat, who.at("head"), (0.026, 0.026), who.skin, dim=(0.88, 0.70))
    _arms(who, front=True)
    _head(who)
    _tresses(who, back)
    if hooded:
        _hood(who, back)
