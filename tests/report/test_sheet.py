from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmdit.errors import Refused
from mmdit.report import sheet

MakeBlob = Callable[..., Any]


def test_a_contact_sheet_has_a_strip_a_clip(tmp_path: Path, blob: MakeBlob) -> None:
    path = sheet.contact_sheet([blob(0), blob(1, frames=1)], ["one", "two"], tmp_path / "sheet.png", frames=3, scale=2)
    with Image.open(path) as image:
        assert image.size == (3 * (96 + 4) + 4, 2 * (128 + 4 + 22) + 4)
    with pytest.raises(Refused):
        sheet.contact_sheet([blob(0)], [], tmp_path / "none.png")


def test_the_grid_moves(tmp_path: Path, blob: MakeBlob) -> None:
    path = sheet.write_moving_grid([blob(i) for i in range(3)], tmp_path / "grid.webp", columns=2, scale=1)
    with Image.open(path) as image:
        assert image.size == (2 * 48 + 3, 2 * 64 + 3)
        assert getattr(image, "n_frames", 1) == 9
        assert image.info["loop"] == 0


def test_a_grid_is_refused_when_shapes_differ_or_it_grows_too_large(
    tmp_path: Path, blob: MakeBlob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused):
        sheet.write_moving_grid([blob(0), blob(1, frames=3)], tmp_path / "grid.webp")
    with pytest.raises(Refused):
        sheet.write_moving_grid([blob(0)], tmp_path / "grid.mp4")
    monkeypatch.setattr(sheet, "LIMIT", 100)
    with pytest.raises(Refused):
        sheet.write_moving_grid([blob(0)], tmp_path / "grid.webp")
    assert list(tmp_path.iterdir()) == []
