"""Pictures of many clips at once: a contact sheet, and a small moving grid for a README."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmdit import files
from mmdit.errors import Refused

Frames = NDArray[np.uint8]  # (frame, height, width, 3)
LIMIT = 500_000  # bytes of a moving grid


def contact_sheet(
    clips: Sequence[Frames], captions: Sequence[str], path: str | Path, *, frames: int = 9, scale: int = 2
) -> Path:
    """Writes a PNG with a row a clip: `frames` of its frames, evenly spaced from first to last, its caption beneath.

    clips: uint8 (frame, height, width, 3) each. Raises Refused when there are no clips, or not a caption for each.
    """
    if not clips or len(clips) != len(captions):
        raise Refused("a sheet needs clips with a caption each", got=f"{len(clips)} clips, {len(captions)} captions")
    font, gap, foot = ImageFont.load_default(13), 4, 22
    strips = []
    for clip in clips:
        picked = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)
        strips.append([_scaled(clip[i], scale) for i in picked])
    width = max(sum(image.width + gap for image in strip) for strip in strips) + gap
    height = sum(strip[0].height + gap + foot for strip in strips) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for strip, caption in zip(strips, captions, strict=True):
        left = gap
        for image in strip:
            sheet.paste(image, (left, top))
            left += image.width + gap
        draw.text((gap, top + strip[0].height + 2), caption, "black", font)
        top += strip[0].height + gap + foot
    with files.new_file(path) as part:
        sheet.save(part, "PNG")
    return Path(path)


def write_moving_grid(
    clips: Sequence[Frames], path: str | Path, *, columns: int = 8, scale: int = 2, fps: float = 8.0
) -> Path:
    """Writes clips side by side as one endlessly moving WebP, a seventh of a GIF's size, for a README.

    clips: uint8 (frame, height, width, 3) each, all of one shape. Raises Refused when they are not, or when the picture
    would be larger than LIMIT.
    """
    path = Path(path)
    if not clips or len({clip.shape for clip in clips}) != 1:
        raise Refused("a grid needs clips of one shape", got=sorted({clip.shape for clip in clips}))
    if path.suffix != ".webp":
        raise Refused("a moving grid is a .webp", got=path.name)
    pictures = [_grid([clip[i] for clip in clips], columns, scale) for i in range(len(clips[0]))]
    with files.new_file(path) as part:
        pictures[0].save(
            part, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, quality=75, method=6
        )
        if (size := part.stat().st_size) > LIMIT:
            raise Refused("the grid is too large", got=f"{size:,} bytes", expected=f"{LIMIT:,}", fix="show fewer clips")
    return path


def _scaled(frame: Frames, scale: int) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC) if scale != 1 else image


def _grid(frames: Sequence[Frames], columns: int, scale: int, gap: int = 3) -> Image.Image:
    columns = min(columns, len(frames))
    images = [_scaled(frame, scale) for frame in frames]
    width, height = images[0].size
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        grid.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return grid
