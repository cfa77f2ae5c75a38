"""A path holds a whole artefact or does not exist, whatever happens on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdit import files
from mmdit.errors import Refused

WRITE = """
import sys
from mmdit import files
try:
    with files.new_folder("folder") as part:
        files.write_json(part / "inner.json", {"a": 1})
except FileExistsError:
    pass
files.write_bytes("file.bin", b"new" * 1000)
"""


def run(code: str, folder: Path, fault: str = "") -> int:
    environment = {**os.environ, "MMDIT_FAULT": fault} if fault else dict(os.environ)
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, timeout=60, check=False).returncode


@pytest.mark.parametrize("stage", ["begin", "written", "renamed"])
@pytest.mark.parametrize("name", ["inner.json", "folder", "file.bin"])
def test_killed_at_any_write_point_nothing_is_half_there(tmp_path: Path, name: str, stage: str) -> None:
    (tmp_path / "file.bin").write_bytes(b"old")
    assert run(WRITE, tmp_path, f"kill@{name}:{stage}") == -9
    if (tmp_path / "folder").exists():
        assert json.loads((tmp_path / "folder" / "inner.json").read_text()) == {"a": 1}
    assert (tmp_path / "file.bin").read_bytes() in (b"old", b"new" * 1000)
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", "file.bin"}
    assert run(WRITE, tmp_path) == 0
    assert (tmp_path / "file.bin").read_bytes() == b"new" * 1000


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setenv("MMDIT_FAULT", "full@a.txt:begin")
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "a.txt", "new")
    monkeypatch.delenv("MMDIT_FAULT")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fault_hook_counts_and_corrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "corrupt@.txt:written#2")
    for name in ("a.txt", "b.txt", "c.txt"):
        files.write_text(tmp_path / name, "12345")
    assert [(tmp_path / name).read_bytes() == b"12345" for name in ("a.txt", "b.txt", "c.txt")] == [True, False, True]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    files.append_line(log, "one")
    with open(log, "ab") as handle:
        handle.write(b"tw")
    files.append_line(log, "three")
    assert log.read_bytes() == b"one\nthree\n"


def test_a_folder_is_held_by_one_process_and_let_go_when_it_ends(tmp_path: Path) -> None:
    held = "import time; from mmdit import files\nwith files.lock('.'): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", held], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=f"in use.*process {process.pid}"), files.lock(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate(timeout=30)
    with files.lock(tmp_path):
        pass


def test_equal_values_are_equal_files(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    files.write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    files.write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    with files.new_folder(tmp_path / "folder") as part:
        save_file({"a": torch.zeros(2)}, part / "a.safetensors")  # as diffusers and transformers do
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    for name in ("a.safetensors", "folder/a.safetensors"):
        assert (tmp_path / name).stat().st_mode == usual


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(Refused, match="no file that could be written anew"):
            files.write_text(path, "text")
    assert (tmp_path / "pipe").is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_folder_made_for_what_is_refused_is_taken_away(tmp_path: Path) -> None:
    for name, made, written in (("new", False, None), ("old", True, None), ("begun", False, "config.yaml")):
        folder = tmp_path / name
        if made:
            folder.mkdir()
        with pytest.raises(Refused, match="no"), files.lock(folder):
            if written:
                (folder / written).touch()
            raise Refused("no")
        assert folder.exists() == (name != "new")
