"""The places the figure is shown in: light, mostly plain, softly graded, so that every colour stands out."""

import numpy as np

from mmdit.clips.canvas import Field, smoothstep
from mmdit.clips.pose import Stage


def _rows(stops: list[tuple[float, tuple[int, int, int]]], height: int) -> Field:
    """A vertical gradient through colour stops, (height, 3); positions are parts of the height."""
    at = (np.arange(height) + 0.5) / height
    places = [place for place, _ in stops]
    bands = [np.interp(at, places, [colour[i] / 255 for _, colour in stops]) for i in range(3)]
    return np.stack(bands, 1).astype(np.float32)


def _tiles(x: Field, seed: float) -> Field:
    """A smooth, never repeating wave along x, about -1 to 1."""
    return (np.sin(x + 6.28 * seed) + np.sin(0.618 * x + 17.0 * seed)) / 2


def _paint(picture: Field, columns: Field, rows: Field, colour: tuple[int, int, int]) -> None:
    """Mixes `colour` into (frame, height, width, 3) where columns (frame, width) and rows (height,) both say so."""
    mask = columns[:, None, :, None] * rows[None, :, None, None]
    picture += (np.asarray(colour, np.float32) / 255 - picture) * mask


def backdrop(name: str, stage: Stage, pan: Field, look: dict[str, float]) -> Field:
    """One of `mmdit.clips.BACKGROUNDS` for each frame, (frame, height, width, 3) in [0, 1]; `pan` in pixels."""
    h, w = stage.height, stage.width
    frames = 1 if not np.any(pan) else len(pan)
    # x and y in picture heights, x from the middle; what is far moves less than the floor under the figure
    x = ((np.arange(w)[None] + 0.5 - w / 2 + 0.75 * pan[:frames, None]) / h).astype(np.float32)
    y = ((np.arange(h) + 0.5) / h).astype(np.float32)
    seed, horizon = look["scene"], look["floor"] - 0.16
    soft = max(0.02, 0.75 / h)

    def over(edge: float, width: float = soft) -> Field:
        return smoothstep(edge - width, edge + width, y)

    def scene(stops: list[tuple[float, tuple[int, int, int]]]) -> Field:
        return np.broadcast_to(_rows(stops, h)[None, :, None], (frames, h, w, 3)).astype(np.float32).copy()

    if name == "studio":
        picture = scene(
            [(0, (196, 202, 210)), (horizon, (222, 225, 229)), (horizon + 0.1, (206, 207, 210)), (1, (190, 190, 194))]
        )
        _paint(
            picture, np.exp(-((x - 0.3 * (seed - 0.5)) ** 2) / 0.08), np.exp(-((y - 0.45) ** 2) / 0.12), (240, 241, 243)
        )
    elif name == "runway":
        picture = scene(
            [(0, (92, 92, 116)), (horizon, (132, 130, 152)), (horizon + 0.01, (196, 193, 200)), (1, (222, 219, 222))]
        )
        lamps = smoothstep(0.55, 0.95, np.cos(2 * np.pi * (x / 0.34 + seed)))
        _paint(picture, 0.75 * lamps, np.exp(-((y - 0.13) ** 2) / 0.0035), (255, 244, 214))
        _paint(picture, 0.25 * lamps, (1 - over(horizon)) * np.exp(-y / 0.5), (236, 226, 220))
    elif name == "street":
        picture = scene(
            [(0, (206, 218, 230)), (0.3, (214, 221, 228)), (horizon, (200, 198, 198)), (1, (172, 170, 172))]
        )
        front = smoothstep(-0.25, -0.05, _tiles(5.0 * x, seed))
        _paint(picture, 0.85 * front, over(0.10) * (1 - over(horizon)), (198, 178, 160))
        panes = smoothstep(0.2, 0.6, np.cos(2 * np.pi * (x / 0.26 + seed))) * front
        floors = smoothstep(0.1, 0.5, np.cos(2 * np.pi * (y - 0.27) / 0.24)) * over(0.15) * (1 - over(horizon - 0.12))
        _paint(picture, 0.55 * panes, floors, (150, 162, 178))
    elif name == "garden":
        picture = scene(
            [(0, (196, 218, 236)), (0.35, (222, 232, 236)), (horizon, (210, 220, 196)), (1, (206, 198, 172))]
        )
        hedge = smoothstep(
            0.0, 1.0, np.clip((y[None, :, None] - 0.36 - 0.07 * _tiles(9.0 * x, seed)[:, None, :]) / 0.09, 0, 1)
        )
        hedge = hedge * (1 - over(horizon))[None, :, None]
        picture += (np.asarray((172, 192, 160), np.float32) / 255 - picture) * hedge[..., None]
        _paint(
            picture,
            0.5 * smoothstep(0.2, 1.0, _tiles(14.0 * x, seed + 0.3)),
            over(0.45) * (1 - over(horizon)),
            (190, 206, 174),
        )
    else:
        picture = scene(
            [
                (0, (168, 202, 230)),
                (0.42, (214, 228, 238)),
                (0.425, (136, 178, 196)),
                (0.60, (166, 204, 210)),
                (0.63, (226, 212, 184)),
                (1, (236, 222, 196)),
            ]
        )
        _paint(
            picture,
            0.7 * smoothstep(0.0, 1.0, _tiles(6.0 * x, seed)),
            np.exp(-((y - 0.16) ** 2) / 0.004),
            (244, 247, 250),
        )
    middle = (np.arange(w)[None, :] + 0.5 - w / 2) / w
    picture *= 1.0 - 0.22 * (middle**2)[:, None, :, None] - 0.05 * ((y - 0.5) ** 2)[None, :, None, None]
    picture *= 0.94 + 0.10 * look["brightness"]
    return np.broadcast_to(picture, (len(pan), h, w, 3))
