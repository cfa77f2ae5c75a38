"""How the figure moves: a skeleton in three dimensions for every frame of a motion.

Lengths are in figure heights, measured from the floor. In the figure's own frame x points to its left-hand side as seen
from the front (screen right), y up and z the way it faces; `Pose.screen` turns, scales and places it in the picture.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Track = NDArray[Any]  # (frame,) or (frame, 3) or, on the screen, (frame, 2)

PITCH = 0.13  # the camera looks down a little: what is nearer appears lower
THIGH, SHIN, ANKLE = 0.238, 0.232, 0.035
UPPER_ARM, FOREARM, HAND = 0.150, 0.135, 0.045
DUTY = 0.6  # part of a gait cycle for which a foot stands
STRIDE = 0.28  # way of the pelvis over a standing foot


@dataclass
class Stage:
    """The picture the figure stands in, in pixels, and the time of each frame."""

    height: int
    width: int
    progress: Track  # 0 at the first frame, 1 at the last
    seconds: Track


@dataclass
class Pose:
    """Joints (frame, 3) by name, and how the figure stands in the picture."""

    joints: dict[str, Track]
    yaw: Track
    scale: Track  # pixels per figure height
    foot_x: Track  # screen position of the point between the feet
    foot_y: Track
    pan: Track  # pixels the backdrop has moved to the left
    spin: Track = field(default_factory=lambda: np.zeros(1, np.float32))  # turning speed, radians a second
    swing: Track = field(default_factory=lambda: np.zeros(1, np.float32))  # how far hems lag behind, (frame, 3)

    def screen(self, point: Track) -> Track:
        """Pixels (frame, 2) of a point (frame, 3)."""
        across = point[:, 0] * np.cos(self.yaw) + point[:, 2] * np.sin(self.yaw)
        up = point[:, 1] - PITCH * self.depth(point)
        return np.stack([self.foot_x + self.scale * across, self.foot_y - self.scale * up], 1).astype(np.float32)

    def depth(self, point: Track) -> Track:
        """How far in front of the figure's axis a point is, toward the camera."""
        return point[:, 2] * np.cos(self.yaw) - point[:, 0] * np.sin(self.yaw)


def point(x: Track | float, y: Track | float, z: Track | float, frames: int) -> Track:
    return np.stack([np.broadcast_to(np.asarray(part, np.float32), (frames,)) for part in (x, y, z)], 1)


def _foot(phase: Track, stride: float, lift: float) -> tuple[Track, Track, Track]:
    """Ankle position along the way, ankle height and toe angle (up is positive) over the gait cycle."""
    q = np.mod(phase, 1.0)
    swing = np.clip((q - DUTY) / (1.0 - DUTY), 0.0, 1.0)
    standing = q < DUTY
    z = np.where(standing, stride * (0.5 - q / DUTY), stride * (0.5 - 0.5 * np.cos(np.pi * swing) - 0.5))
    off = np.clip((q - 0.38) / (DUTY - 0.38), 0.0, 1.0) ** 2
    size = min(1.0, stride / STRIDE)
    heel = np.where(standing, 0.040 * off, 0.040 * (1.0 - swing) ** 2) * size
    y = ANKLE + heel + np.where(standing, 0.0, lift * np.sin(np.pi * swing))
    strike = 0.30 * np.clip(1.0 - q / 0.1, 0.0, 1.0)
    toe = np.where(standing, strike - 0.75 * off, -0.75 + 1.05 * (0.5 - 0.5 * np.cos(np.pi * swing))) * size
    return z, y, toe


def _legs(joints: dict[str, Track], feet: dict[str, Track], toes: dict[str, Track], roll: Track) -> None:
    """Hips, knees, ankles and toes from where the pelvis and the feet are."""
    frames = len(roll)
    for name, side in (("left", 1.0), ("right", -1.0)):
        hip = joints["pelvis"] + point(0.047 * side, roll * side - 0.005, 0.0, frames)
        ankle = feet[name]
        way = ankle - hip
        far = np.sqrt((way**2).sum(1))
        reach = np.minimum(far, THIGH + SHIN - 1e-3)
        along = (THIGH**2 - SHIN**2 + reach**2) / (2 * reach)
        bend = np.sqrt(np.maximum(THIGH**2 - along**2, 0.0))
        forward = point(0.12 * side, 0.0, 1.0, frames)
        forward = forward - way * ((forward * way).sum(1) / far**2)[:, None]
        forward /= np.sqrt((forward**2).sum(1))[:, None]
        joints[f"{name}_hip"], joints[f"{name}_ankle"] = hip, ankle
        joints[f"{name}_knee"] = hip + way * (along / far)[:, None] + forward * bend[:, None]
        angle = toes[name]
        joints[f"{name}_toe"] = ankle + point(
            0.022 * side, -0.024 + 0.085 * np.sin(angle), 0.085 * np.cos(angle), frames
        )


def _arms(joints: dict[str, Track], swing: dict[str, Track], bend: float, spread: Track | float, twist: Track) -> None:
    """Shoulders, elbows, wrists and hands; `swing` is the angle of the upper arm, forward positive."""
    frames = len(twist)
    for name, side in (("left", 1.0), ("right", -1.0)):
        shoulder = joints["chest"] + point(0.088 * side * np.cos(twist), -0.004, -0.088 * side * np.sin(twist), frames)
        out = np.asarray(spread, np.float32)
        angle = swing[name]
        upper = point(np.sin(out) * side, -np.cos(angle) * np.cos(out), np.sin(angle), frames)
        lower_angle = angle + bend + 0.35 * np.maximum(angle, 0.0)
        lower = point(np.sin(out * 0.3) * side, -np.cos(lower_angle), np.sin(lower_angle), frames)
        joints[f"{name}_shoulder"] = shoulder
        joints[f"{name}_elbow"] = shoulder + UPPER_ARM * upper
        joints[f"{name}_wrist"] = joints[f"{name}_elbow"] + FOREARM * lower
        joints[f"{name}_hand"] = joints[f"{name}_wrist"] + HAND * lower


def _trunk(frames: int, pelvis: Track, lean: Track, head: Track) -> dict[str, Track]:
    """Pelvis, chest, neck and head; `lean` and `head` are (frame, 3) offsets of the chest and of the head over it."""
    chest = pelvis + point(0.0, 0.305, 0.0, frames) + lean
    neck = chest + point(0.0, 0.040, 0.004, frames) + 0.3 * head
    top = chest + point(0.0, 0.132, 0.012, frames) + head
    return {"pelvis": pelvis, "chest": chest, "neck": neck, "head": top}


def _gait(frames: int, phase: Track, stride: float, lift: float, arms: float, still: float = 0.0) -> dict[str, Track]:
    """A walking figure. `phase` counts gait cycles; `still` is how much taller it stands for not striding out."""
    tau = 2 * np.pi
    bob = 0.010 * np.cos(2 * tau * (phase - 0.3)) * min(1.0, stride / 0.1 + 0.3)
    sway = 0.012 * np.sin(tau * (phase + 0.05))
    pelvis = point(sway, 0.492 + bob + still, 0.0, frames)
    roll = 0.010 * np.sin(tau * (phase + 0.05))
    twist = 0.14 * np.cos(tau * phase) * (stride / STRIDE)
    lean = point(-0.5 * sway, 0.0, 0.012 * stride / STRIDE, frames)
    joints = _trunk(frames, pelvis, lean, point(-0.3 * sway, 0.0, 0.004, frames))
    feet, toes, swing = {}, {}, {}
    for name, side, shift in (("left", 1.0, 0.0), ("right", -1.0, 0.5)):
        z, y, toe = _foot(phase + shift, stride, lift)
        feet[name] = point(0.040 * side, y, z, frames)
        toes[name] = toe
        swing[name] = -arms * np.cos(tau * (phase + shift - 0.03))
    _legs(joints, feet, toes, roll)
    _arms(joints, swing, 0.22, 0.13, twist)
    return joints


def _lag(phase: Track, frames: int, size: float) -> Track:
    """Hems follow the pelvis late: sideways once a cycle, forward and back twice."""
    tau = 2 * np.pi
    return point(-size * np.sin(tau * (phase - 0.12)), 0.0, 0.6 * size * np.sin(2 * tau * (phase - 0.1)), frames)


def _walk(stage: Stage, look: dict[str, float], direction: float) -> Pose:
    f = len(stage.progress)
    scale = look["scale"] * stage.height
    phase = look["phase"] + look["tempo"] * 0.92 * stage.seconds
    joints = _gait(f, phase, STRIDE, 0.045, 0.42)
    way = direction * scale * STRIDE / DUTY * (phase - phase[0])
    total = abs(float(way[-1]))
    room = max(0.0, 0.95 * (stage.width - 0.46 * scale))
    seen = min(total, room) / total if total else 0.0
    centre = stage.width / 2 + 0.1 * (look["place"] - 0.5) * room
    yaw = np.full(f, direction * (np.pi / 2 - 0.05 - 0.22 * look["angle"]), np.float32)
    foot_x = centre + way * seen - direction * total * seen / 2
    foot_y = np.full(f, look["floor"] * stage.height)
    pan = way * (1.0 - seen)
    return Pose(joints, yaw, np.full(f, scale), foot_x, foot_y, pan, np.zeros(f), _lag(phase, f, 0.016))


def _approach(stage: Stage, look: dict[str, float]) -> Pose:
    f = len(stage.progress)
    phase = look["phase"] + look["tempo"] * 1.05 * stage.seconds
    near = (0.70 + 0.27 * stage.progress) * (1.0 + 0.0 * phase)
    scale = look["scale"] * stage.height * 1.02 * near
    joints = _gait(f, phase, 0.22, 0.050, 0.42)
    foot_y = stage.height * (look["floor"] - 0.12 * (1.0 - stage.progress))
    foot_x = stage.width * (0.5 + 0.10 * (look["place"] - 0.5)) + 0.0 * phase
    yaw = 0.30 * (look["angle"] - 0.5) * (1.0 - 0.7 * stage.progress)
    return Pose(joints, yaw, scale, foot_x, foot_y, np.zeros(f), np.zeros(f), _lag(phase, f, 0.022))


def _turn(stage: Stage, look: dict[str, float]) -> Pose:
    f = len(stage.progress)
    t = stage.progress
    direction = 1.0 if look["side"] > 0.5 else -1.0
    eased = t - 0.6 * np.sin(2 * np.pi * t) / (2 * np.pi)
    yaw = 0.35 * (look["angle"] - 0.5) + direction * 2 * np.pi * eased
    seconds = max(float(stage.seconds[-1]), 0.5)
    spin = direction * 2 * np.pi * (1.0 - 0.6 * np.cos(2 * np.pi * t)) / seconds
    phase = look["phase"] + look["tempo"] * 0.95 * stage.seconds
    joints = _gait(f, phase, 0.05, 0.022, 0.16, 0.020)
    scale = np.full(f, look["scale"] * stage.height)
    foot_x = np.full(f, stage.width * (0.5 + 0.10 * (look["place"] - 0.5)))
    foot_y = np.full(f, look["floor"] * stage.height)
    return Pose(joints, yaw, scale, foot_x, foot_y, np.zeros(f), spin, _lag(phase, f, 0.006))


def _sway(stage: Stage, look: dict[str, float]) -> Pose:
    f = len(stage.progress)
    tau = 2 * np.pi
    phase = look["phase"] + look["tempo"] * 0.58 * stage.seconds
    wave, late = np.sin(tau * phase), np.sin(tau * (phase - 0.12))
    pelvis = point(0.050 * wave, 0.495 - 0.010 * wave**2, 0.0, f)
    lean = point(0.030 * late, 0.0, 0.0, f)
    joints = _trunk(f, pelvis, lean, point(0.020 * np.sin(tau * (phase - 0.2)), 0.0, 0.004, f))
    feet = {name: point(0.072 * side, ANKLE, 0.0, f) for name, side in (("left", 1.0), ("right", -1.0))}
    _legs(joints, feet, {"left": np.zeros(f), "right": np.zeros(f)}, 0.012 * wave)
    swing = {"left": 0.06 + 0.10 * late, "right": 0.06 - 0.10 * late}
    _arms(joints, swing, 0.25, 0.16 + 0.05 * late, 0.05 * late)
    yaw = np.full(f, 0.8 * (look["angle"] - 0.5))
    scale = np.full(f, look["scale"] * stage.height)
    foot_x = np.full(f, stage.width * (0.5 + 0.10 * (look["place"] - 0.5)))
    foot_y = np.full(f, look["floor"] * stage.height)
    hem = point(-0.030 * np.cos(tau * phase), 0.0, 0.0, f)
    return Pose(joints, yaw, scale, foot_x, foot_y, np.zeros(f), np.zeros(f), hem)


def pose(motion: str, stage: Stage, look: dict[str, float]) -> Pose:
    """The figure in one of the motions of `mmdit.clips.MOTIONS`; `look` holds its numbers in [0, 1] and its size."""
    if motion == "walks left":
        return _walk(stage, look, -1.0)
    if motion == "walks right":
        return _walk(stage, look, 1.0)
    if motion == "turns round":
        return _turn(stage, look)
    if motion == "steps toward the camera":
        return _approach(stage, look)
    return _sway(stage, look)
