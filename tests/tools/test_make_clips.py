"""`mmdit make-clips` as it is called."""

from pathlib import Path

import pytest

from mmdit.tools.cli import main


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["make-clips", *map(str, words)])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_makes_clips_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tmp_path / "a b", "--count", 9, "--seed", 1, "--size", "32x32", "--frames", 3, "--fps", 8, "--workers", 1)
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert "9 clips of 3 frames, 32x32: 7 train, 1 validation, 1 held_out" in out
    assert str(tmp_path / "a b" / "captions.csv") in out
    assert f"next: mmdit encode '{tmp_path / 'a b'}' --out STORE" in out  # can be pasted
    assert len(list((tmp_path / "a b/clips").glob("*.mp4"))) == 9
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "make-clips: 9 of 9 clips" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--count", 0), "count, got 0"),
        (("--size", "63x64"), "use 64x64"),
        (("--size", "16x16"), "32 to 1024"),
        (("--size", "wide"), "HEIGHTxWIDTH"),
        (("--frames", 0), "frames, got 0"),
        (("--fps", -1), "fps, got -1"),
        (("--variety", 1.5), "variety, got 1.5, expected 0 to 1"),
        (("--workers", -1), "workers, got -1"),
    ],
)
def test_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], line: str
) -> None:
    code, out, err = call(capsys, tmp_path / "new", *words)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_refuses_a_folder_made_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tmp_path / "new", "--count", 2, "--size", "32x32", "--frames", 1, "--workers", 1)
    assert call(capsys, *words)[0] == 0
    code, _, err = call(capsys, *words, "--variety", 0)
    assert code == 2
    assert "variety, got 0.0, expected 1.0" in err
    code, _, err = call(capsys, *words, "--seed", 9)
    assert code == 2
    assert "seed, got 9, expected 0" in err
