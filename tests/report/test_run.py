"""The page of a run: what it shows, and what it makes of runs that are half there."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from html_page import Page
from PIL import Image

from mmdit.errors import Refused
from mmdit.report import log as logs
from mmdit.report import samples
from mmdit.report.run import write_report

EVIL = "<script>alert('x')</script>"


def line(step: int, **more: Any) -> dict[str, Any]:
    validation = {"val_loss": 2.0 / step, "val_noise": {"0.1": 0.3, "0.9": 0.9}, "val_labels": {"coat": 0.5, "hat": 1}}
    return {
        "step": step, "loss": 1.0 / step, "grad_norm": 0.5, "lr": 1e-3, "skipped": 0, "seconds": step * 0.5,
        "clips_per_s": 64.0, "tokens_per_s": 4000.0, "model_flops_per_s": 7e10, "peak_share": 0.4,
        "memory_bytes": 2**30, "data_wait_share": 0.02, **(validation if step % 20 == 0 else {}), **more,
    }  # fmt: skip


def write_log(folder: Path, *lines: dict[str, Any], torn: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + torn, encoding="utf-8")


def draw(folder: Path, step: int, count: int = 2, *, suffix: str = ".png", **facts: Any) -> Path:
    """Samples of a step; as .mp4 they are no real clips, which a page does not mind."""
    made = folder / "samples" / f"step-{step:07d}"
    made.mkdir(parents=True)
    entries = []
    for number in range(count):
        name = f"{number:02}{suffix}"
        if suffix == ".png":
            Image.new("RGB", (8, 8), (step % 256, number, 0)).save(made / name)
        else:
            (made / name).write_bytes(bytes([step % 256, number]))
        entries.append({"file": name, "prompt": f"a red coat {number}", "label": None, "seed": number} | facts)
    (made / "samples.json").write_text(json.dumps(entries), encoding="utf-8")
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 200\ndata:\n  store: stores/mine\n", encoding="utf-8")
    write_log(folder, *(line(step) for step in range(2, 121, 2)))
    for step in (20, 40, 60):
        draw(folder, step, suffix=".mp4")
    for step in (50, 100):
        (folder / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
        state = {"format": 1, "step": step, "mmdit": "0.1.0"}
        (folder / "checkpoints" / f"step-{step:07d}" / "state.json").write_text(json.dumps(state))
    report = {"source": "/models/image", "loaded": ["a.weight"] * 30, "inflated": [], "left_out": ["b"], "fresh": []}
    (folder / "init.json").write_text(json.dumps(report))
    table = pyarrow.table({"id": ["1", "2", "3"], "reason": ["no frames", "no frames", "cut short"]})
    pyarrow.parquet.write_table(table, folder / "quarantine.parquet")
    return folder


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_it_shows_everything_and_needs_nothing(run: Path) -> None:
    page = page_of(run)
    assert page.needs_nothing()
    assert page.counts["svg"] == 1 + 1 + 8  # losses, noise levels, and a small one for each figure
    assert page.counts["video"] == 2 + 2 * 2
    for text in (
        "my run", "Step 120 of 200, not finished", "60.0 %", "64 clips a second", "40 s left, at this speed",
        "0.008333 training loss", "0.01667 held-out loss", "Lowest so far: 0.01667, at step 120",
        "a red coat 1".capitalize(), "seed 1", "Drawn at step 60", "step 40", "step 20",
        "coat", "70 GFLOP/s", "40 %", "1 GiB", "No step: each had a finite loss",
        "3 clips could not be read", "cut short", "30 weights taken over", "and 18 more", "/models/image",
        "0.02", "mmdit 0.1.0", "store: stores/mine",
    ):  # fmt: skip
        assert text in page.text, text


def test_a_finished_run_says_so(run: Path) -> None:
    write_log(run, line(100), line(200))
    assert "Finished: all 200 steps are done." in page_of(run).text
    assert "left, at this speed" not in page_of(run).text


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("metrics.jsonl", "No step was logged yet."),
        ("samples", "No samples were drawn yet."),
        ("config.yaml", "There is no config.yaml"),
        ("checkpoints", "None was written yet."),
        ("init.json", ""),
        ("quarantine.parquet", ""),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_what_is_missing_or_damaged_is_left_out(run: Path, part: str, says: str, damage: str) -> None:
    path = run / part
    is_folder = path.is_dir()
    (shutil.rmtree if is_folder else Path.unlink)(path)
    if damage == "damaged":
        path.write_bytes(b"\xff{: [\x00")
    page = page_of(run)
    if damage == "missing" or part != "config.yaml":
        assert says in page.text
    assert "3 clips could not be read" in page.text or part == "quarantine.parquet"


def test_an_empty_folder_has_a_page_and_no_folder_is_refused(tmp_path: Path) -> None:
    assert "No step was logged yet." in page_of(tmp_path).text
    with pytest.raises(Refused, match="no run to report on"):
        write_report(tmp_path / "nothing")


def test_a_torn_line_is_left_out_and_a_damaged_one_is_told(run: Path) -> None:
    write_log(run, line(2), line(4), torn='{"step": 6, "lo')
    text = page_of(run).text
    assert "Step 4 of 200" in text
    assert "cannot be read" not in text
    (run / "metrics.jsonl").write_text('{"step": 2, "loss": 1}\n{oops\n[1]\n{"step": 6, "loss": 1}\n')
    text = page_of(run).text
    assert "2 lines of metrics.jsonl cannot be read" in text
    assert "Step 6 of 200" in text


def test_values_of_any_kind_are_borne(run: Path) -> None:
    write_log(
        run,
        line(2, loss=None, grad_norm=None, val_loss=None, val_noise=None, val_labels=[1]),
        line(4, loss=math.nan, lr="x", seconds=None, clips_per_s=[], val_noise={"a": 1, "0.5": None}, val_loss={}),
        line(6, loss=math.inf, memory_bytes=0, skipped="many", val_labels={"coat": None, "hat": 0.0}),
    )
    assert "– training loss" in page_of(run).text


def test_one_line_alone(run: Path) -> None:
    write_log(run, line(20))
    page = page_of(run)
    assert page.counts["svg"] == 10
    assert "left, at this speed" not in page.text


def test_time_left_is_at_the_speed_since_the_run_was_taken_up(run: Path) -> None:
    before = [line(step, seconds=step * 9.0) for step in range(2, 11, 2)]
    write_log(run, *before, line(12, seconds=2.0), line(16, seconds=4.0), line(20, seconds=6.0))
    assert "1 min 30 s left" in page_of(run).text  # 180 steps at 0.5 s


def test_skipped_steps_are_told_with_their_place(run: Path) -> None:
    write_log(run, line(10), line(20, skipped=3), line(30, skipped=3, loss=None))
    text = page_of(run).text
    assert "3 steps without a finite loss or gradient" in text
    assert "3 of steps 11 to 20" in text
    assert "21 to 30" not in text


def test_text_of_users_cannot_bring_in_markup(run: Path) -> None:
    shutil.rmtree(run / "samples")
    draw(run, 20, prompt=EVIL, label=f'"{EVIL}', seed=EVIL)
    draw(run, 40, prompt=None, label=f'"{EVIL}', seed=EVIL)
    (run / "config.yaml").write_text(f"steps: 200\nstore: {EVIL}\n</pre>\n", encoding="utf-8")
    (run / "init.json").write_text(json.dumps({"source": EVIL, "left_out": [EVIL]}))
    write_log(run, line(20, val_labels={EVIL: 1.0}, val_noise={EVIL: 1}))
    pyarrow.parquet.write_table(pyarrow.table({"reason": [EVIL]}), run / "quarantine.parquet")
    moved = run.rename(run.with_name("a <script>b"))
    page = page_of(moved)
    assert page.counts["script"] == 1
    assert page.html.count("<script>") == 1
    assert page.text.count(EVIL) >= 5


def test_text_that_is_no_unicode_is_borne(run: Path) -> None:
    draw(run, 80, prompt="half \ud800")
    assert "Half ?" in page_of(run).text


def test_pictures_are_embedded_and_files_elsewhere_are_not(run: Path) -> None:
    made = draw(run, 80, count=1)
    (run / "secret.png").write_bytes(b"secret")
    entries = [{"file": name} for name in ("00.png", "../../secret.png", "gone.mp4", "samples.json", "\0.png")]
    (made / "samples.json").write_text(json.dumps([*entries, "no table", {"prompt": "no file"}]))
    page = page_of(run)
    assert page.counts["img"] == 1
    assert "Drawn at step 80: 1 of 5" in page.text


def test_without_samples_json_the_files_are_shown(run: Path) -> None:
    (draw(run, 80, count=3) / "samples.json").write_text("{")
    page = page_of(run)
    assert page.counts["img"] == 3
    assert "no prompt" in page.text


def test_samples_are_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(80, 1000, 20):
        draw(run, step, count=1)
    draw(run, 1000, count=samples.LATEST + 5)
    page = page_of(run)
    assert page.counts["img"] + page.counts["video"] == samples.LATEST + samples.EARLIER_STEPS + 1  # 20 has two
    assert "step 20" in page.text and "step 980" in page.text
    assert f"{samples.EARLIER_STEPS} of {3 + 46} earlier steps" in page.text
    monkeypatch.setattr(samples, "BYTES", 2 * 74)
    assert sum(page_of(run).counts.get(tag, 0) for tag in ("img", "video")) <= 2 + 4
    monkeypatch.setattr(samples, "BYTES", 0)
    assert "img" not in page_of(run).counts


def test_a_long_log_is_thinned_and_keeps_its_spikes_and_its_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line(step, loss=100.0 if step == 3333 else 1.0) for step in range(1, 10_002)]
    write_log(run, *rows)
    page = page_of(run)
    assert len(page.html) < 400_000
    faint = re.findall(r'<path d="([^"]*)"[^>]*opacity', page.html)[0]
    assert faint.count("L") < 800
    assert len(set(re.findall(r"[ML][\d.]+ ([\d.]+)", faint))) > 1  # the spike
    monkeypatch.setattr(logs, "WHOLE", 100_000)
    log = logs.read_log(run / "metrics.jsonl")
    assert len(log.rows) < 1000
    assert log.rows[-1]["step"] == 10_001
    assert [row["step"] for row in log.rows if "val_loss" in row] == list(range(20, 10_002, 20))


def test_a_page_that_cannot_be_written_leaves_the_one_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(run).read_bytes()
    write_log(run, line(140))
    monkeypatch.setenv("MMDIT_FAULT", "full@report.html:written")
    with pytest.raises(OSError, match="No space"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".part-*"))
