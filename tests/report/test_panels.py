"""Pictures of measured points: every curve is in the file, whole."""

from pathlib import Path

from mmdit.report.panels import Curve, Panel, draw_panels


def test_every_curve_is_drawn_and_named(tmp_path: Path) -> None:
    curves = [
        Curve("measured", "#ff0000", [1, 10, 100], [2, 30, 400], [2, 20, 200]),
        Curve("other", "#00ff00", [1], [1]),
    ]
    panels = [Panel("tokens", "seconds", curves, log=True), Panel("clips", "seconds", curves[:1])]
    draw_panels(tmp_path / "growth.svg", panels, title="a test")
    drawn = (tmp_path / "growth.svg").read_text()
    assert drawn.count("#ff0000") >= 4 and "#00ff00" in drawn
    for text in ("a test", "measured", "tokens"):
        assert f"<!-- {text} -->" in drawn
    assert [path.name for path in tmp_path.iterdir()] == ["growth.svg"]
