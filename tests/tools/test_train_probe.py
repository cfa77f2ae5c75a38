from pathlib import Path

import pytest

from mmdit.errors import Refused, Stopped
from mmdit.evaluation import probe_training
from mmdit.evaluation.probe import load_probe
from mmdit.tools.train_probe import main

SMALL = [
    "train.count=8", "test.count=4", "frames=9", "widths=[8, 8, 8]", "batch_size=4", "steps=2", "precision=float32",
]  # fmt: skip


def folders(base: Path) -> list[str]:
    return [f"train.folder={base / 'train'}", f"test.folder={base / 'test'}"]


def test_an_untrained_probe_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="cannot be trusted"):
        main("probe_fashion", [*SMALL, *folders(tmp_path)], tmp_path / "probe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_a_probe_that_reads_right_is_written_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = load_probe()
    monkeypatch.setattr(probe_training, "train_probe", lambda data, recipe, progress: real)
    main("probe_fashion", [*SMALL, "frames=17", *folders(tmp_path)], tmp_path / "probe")
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert load_probe(tmp_path / "probe").config == real.config
    assert "train.count=8" in (tmp_path / "probe" / "README.md").read_text()
    assert "100" in capsys.readouterr().out
    with pytest.raises(Refused, match="there already"):
        main("probe_fashion", [*SMALL, *folders(tmp_path)], tmp_path / "probe")


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"did you mean steps\?"):
        main("probe_fashion", ["stepz=3", *folders(tmp_path)], tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []
