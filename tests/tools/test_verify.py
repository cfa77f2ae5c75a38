"""`mmdit verify` and `mmdit inspect` on a store that `mmdit encode` made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code
from PIL import Image
from pooled import Direct

from mmdit.clips.video import write_clip
from mmdit.latents import encode
from mmdit.latents.store import LatentStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encode, "ClipReader", Direct)
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[0:32, 0:48]
    for number in range(5):
        waves = [np.stack([np.sin((x * (c + number) + y + t) / 9) * 90 + 128 for c in range(3)], -1) for t in range(5)]
        write_clip(tmp_path / "clips" / f"{number}.mp4", np.array(waves).astype(np.uint8), 8)
    table = "".join(f"{number}.mp4,waves {number},{'ab'[number % 2]}\n" for number in range(5))
    (tmp_path / "clips" / "captions.csv").write_text("path,caption,label\n" + table)
    words = ("encode", "clips", "--out", "store", "--frames", 5, "--size", "32x48", "--shard", 2, "--psnr-every", 1)
    assert exit_code(*words) == 0
    return tmp_path / "store"


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.*") if path.suffix in (".json", ".safetensors")}


def damage(store: Path) -> None:
    path = store / "shards" / "00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_sound_store_and_its_contact_sheet(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("verify", store) == 0
    assert "sound: 5 clips in 3 shards" in capsys.readouterr().out
    with Image.open(store / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 5 * 48 and pixels.std() > 20
    assert exit_code("verify", store, "--clips", 0, "--sheet", store / "none.png") == 0
    assert not (store / "none.png").exists()


def test_damage_is_named_and_made_again_by_the_recorded_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    damage(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert exit_code("verify", store) == 4
    told = capsys.readouterr()
    assert "shards/00001.safetensors: its bytes have changed" in told.out and "first is 2.mp4" in told.out
    assert "--fix" in told.err and "mmdit encode clips --out store --frames 5" in told.err
    assert exit_code("verify", store, "--fix") == 0
    assert contents(store) == before
    assert exit_code("verify", store) == 0


def test_fixing_without_the_sources_takes_nothing_out(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store)
    moved = store.rename(tmp_path / "moved")
    (tmp_path / "clips").rename(tmp_path / "gone")
    before = contents(moved)
    assert exit_code("verify", moved, "--fix") == 4
    told = capsys.readouterr()
    assert f"put them there, or a link: it runs mmdit encode clips --out {moved} --frames 5" in told.err
    assert contents(moved) == before and len(LatentStore.open(moved)) == 5
    (tmp_path / "clips").symlink_to(tmp_path / "gone")
    assert exit_code("verify", moved, "--fix") == 0
    assert exit_code("verify", moved) == 0


@pytest.mark.parametrize("said", [None, ["clips", "--out=store"], ["--out", "store", "clips"]])
def test_a_moved_store_is_made_again_where_it_is(store: Path, tmp_path: Path, said: list[str] | None) -> None:
    if said is not None:
        meta = json.loads((store / "store.json").read_text())
        meta["made"]["command"] = [*said, *meta["made"]["command"][3:]]
        (store / "store.json").write_text(json.dumps(meta))
    damage(store)
    moved = store.rename(tmp_path / "moved")
    assert exit_code("verify", moved, "--fix") == 0
    assert len(LatentStore.open(moved)) == 5 and not store.exists()


def test_pruning_says_first_what_goes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips" / "captions.csv").unlink()
    (tmp_path / "clips" / "3.mp4").unlink()
    assert exit_code("encode", "clips", "--out", "store", "--frames", 5, "--size", "32x48", "--shard", 2) == 0
    before = contents(store)
    assert exit_code("verify", store, "--prune", "--dry-run") == 0
    assert " of 3.mp4" in (told := capsys.readouterr().out) and "not used: 1 latents" in told
    assert "removed" not in told and contents(store) == before
    assert exit_code("verify", store, "--prune") == 0
    assert "removed" in capsys.readouterr().out and len(LatentStore.open(store)) == 4
    assert exit_code("verify", store, "--prune") == 0
    assert "not used: 0 latents" in capsys.readouterr().out


def test_inspect_prints_figures_and_writes_a_page(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("inspect", store) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "train 5 32x48 16x3x4x6 5" in told and "a (3), b (2)" in told and "5 clips" in told
    page = (store / "inspect.html").read_text()
    assert page.count('src="data:video/mp4;base64,') == 10 and page.count(">source</span>") == 5
    assert "Waves 3" in page and "http" not in page
    psnr = LatentStore.open(store).row(0)["psnr"]
    assert f"{psnr:.1f} dB" in page
    shutil.rmtree(tmp_path / "clips")
    assert exit_code("inspect", store, "--clips", 2, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:video/mp4;base64,') == 2 and "not there any more" in page


def test_a_codec_that_is_not_there_leaves_out_the_clips(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((store / "store.json").read_text())
    meta["codec"]["name"] = str(store / "nowhere")
    (store / "store.json").write_text(json.dumps(meta))
    assert exit_code("verify", store) == 0 and exit_code("inspect", store) == 0
    told = capsys.readouterr().out
    assert "no contact sheet: " in told and "no clips on the page: " in told
    assert "<video" not in (store / "inspect.html").read_text()


def test_another_codec_of_that_name_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((store / "store.json").read_text())
    meta["codec"]["fingerprint"] = "another"
    (store / "store.json").write_text(json.dumps(meta))
    assert exit_code("inspect", store) == 2
    assert "of another codec" in (told := capsys.readouterr().err) and "expected another (fashion)" in told


def test_inspect_says_where_to_look_at_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert exit_code("inspect", tmp_path) == 2
    assert "got a run; look at " in capsys.readouterr().err


def test_a_store_that_cannot_be_written_to_is_sound_all_the_same(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_file(path: Path, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mmdit.files.new_file", new_file)
    assert exit_code("verify", store) == 0 and exit_code("inspect", store) == 0
    told = capsys.readouterr().out
    assert "sound: 5 clips" in told and "no contact sheet: [Errno 13] Permission denied" in told
    assert "no page: [Errno 13] Permission denied" in told and "--out PAGE.html" in told
    assert exit_code("verify", store, "--sheet", tmp_path / "sheet.png") == 4
    assert exit_code("inspect", store, "--out", tmp_path / "page.html") == 4
