"""`mmdit plan`: it says what encode would do, does none of it, and encode then does just that."""

import re
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code
from PIL import Image

from mmdit.clips.video import write_clip
from mmdit.latents import codec as codec_module
from mmdit.latents.store import LatentStore


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    y, x = np.mgrid[0:64, 0:96]
    for number, frames in enumerate((9, 20, 3)):
        wave = [np.stack([np.sin((x + y * number + 3 * t) / 9) * 90 + 128] * 3, -1) for t in range(frames)]
        pixels = np.array(wave).astype(np.uint8)
        write_clip(folder / f"{number}.mp4", pixels if number else pixels.transpose(0, 2, 1, 3), 8)
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "bad.mp4").write_text("no video")
    return folder


WORDS = ("--bucket", "5x32x48", "--bucket", "5x48x32", "--bucket", "1x32x48", "--windows", "all")


def test_it_tells_what_encode_then_does(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(videos.rglob("*"))
    monkeypatch.setattr(codec_module, "fingerprint", None)  # of weights, which are not loaded
    assert exit_code("plan", videos, *WORDS, "--stride", 1) == 0
    said = capsys.readouterr().out
    monkeypatch.undo()
    assert sorted(videos.rglob("*")) == before
    counts = {bucket: int(count) for bucket, count in re.findall(r"^(\d+x\d+x\d+) +(\d+) ", said, re.M)}
    assert counts == {"5x32x48": 4, "5x48x32": 1, "1x32x48": 4}
    assert re.search(r"kept: 9 clips of 5 sources, 4 s of video", said)
    assert re.search(r"dropped: 1\n +not a video: 1, the first: bad\.mp4: not a video: ", said)
    assert "speed against the source: 1.00 least, 1.00 median, 1.00 most" in said
    assert re.search(r"time: about \d+ s or more; reading \d+\.\d clips/s, the codec was not measured", said)
    disk = float(re.search(r"disk: (\d+\.\d) MB", said)[1])  # type: ignore[index]

    assert exit_code("encode", videos, "--out", tmp_path / "store", *WORDS, "--stride", 1, "--max-skipped", 1) == 0
    store = LatentStore.open(tmp_path / "store")
    found = {f"{group.frames}x{group.height}x{group.width}": group.count for group in store.groups}
    assert found == counts
    kept = sum(mean.nbytes + std.nbytes for mean, std in (store.latent(row) for row in range(len(store))))
    assert disk == pytest.approx(kept / 1e6, abs=0.06)


def test_speed_budget_and_codec(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", videos, "--frames", 5, "--token-budget", 36, "--stride", 2, "--with-codec") == 0
    said = capsys.readouterr().out
    assert "speed against the source: 2.00 least, 2.00 median, 2.00 most" in said
    assert re.search(r"too short: 1, the first: 2\.mp4: too short: 2 frames at the wanted rate", said)
    assert re.search(r"time: about \d+ s; reading \d+\.\d clips/s, encoding \d+\.\d", said)
    for frames, height, width in re.findall(r"^(\d+)x(\d+)x(\d+) ", said, re.M):
        # the embedded codec: 8 times in space, 2 in time... a token is 2x2 places
        assert int(frames) == 5 and int(height) * int(width) // 256 * 3 <= 36


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--bucket", "5x32"], "not a bucket.*FRAMESxHEIGHTxWIDTH"),
        (["--bucket", "4x32x48"], "cannot take this size"),
        (["--bucket", "5x32x48", "--token-budget", "99"], "both buckets and a token budget"),
        (["--token-budget", "0"], "impossible budget"),
        (["--windows", "some"], "not a number of windows"),
        (["--windows", "2", "--window-step", "1"], "a step of windows"),
        (["--stride", "0"], "stride is out of range"),
        (["--labels", "folder"], "file without a class folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    videos: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("plan", videos, *words) == 2
    assert re.fullmatch(rf"mmdit: .*{line}.*\n", capsys.readouterr().err)


def test_options_from_a_file(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "clips.yaml"
    recipe.write_text("bucket: [5x32x48, 5x48x32]\nwindows: 2\nfps: 4\n")
    assert exit_code("plan", videos, "--recipe", recipe) == 0
    said = capsys.readouterr().out
    assert re.search(r"^5x32x48 +2 ", said, re.M) and re.search(r"^5x48x32 +1 ", said, re.M)
    assert exit_code("plan", videos, "--recipe", recipe, "--windows", "1") == 0  # what is said on the line goes first
    assert re.search(r"^5x32x48 +1 ", capsys.readouterr().out, re.M)
    for text, line in (
        ("buckets: [5x32x48]", "no such option, in .*clips.yaml, got buckets; did you mean bucket?"),
        ("fps: fast", "fps.*'fast'"),
        ("- 5", "not a table of keys"),
        ("a: [", "not YAML"),
    ):
        recipe.write_text(text)
        assert exit_code("plan", videos, "--recipe", recipe) == 2
        assert re.search(line, capsys.readouterr().err)


def test_nothing_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert exit_code("plan", tmp_path) == 2
    assert re.search(r"no usable source.*got 1, the first: empty file", capsys.readouterr().err)
