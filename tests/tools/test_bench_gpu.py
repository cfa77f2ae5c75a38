"""`mmdit bench gpu`: all parts run on a CPU, what fails leaves the rest, and it goes on where it was."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from torch.distributed.tensor import DTensor

from mmdit.tools import bench_gpu, gpu_parts
from mmdit.tools.gpu_parts import Part, measure_part, parts, read
from mmdit.tools.gpu_table import table
from mmdit.training import model_speed
from mmdit.training.gpu_rows import make_case
from mmdit.training.speed_step import Trained, group_of_one
from mmdit.training.speed_ways import Way

VIDEO = [pytest.param(name, marks=pytest.mark.slow) for name in ("train-factorized-1", "train-joint-1")]


def bench(out: Path, *words: object) -> int:
    return commands.exit_code("bench", "gpu", "--out", out, "--device", "cpu", "--runs", 1, *words)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are measured here, on products of next to nothing, and nothing is compiled."""

    def run(command: list[str], limit: int) -> None:
        name, place, device, runs, size = command[3:]
        measure_part(name, Path(place), device, int(runs), tiny=size == "tiny")

    monkeypatch.setattr(bench_gpu, "_run", run)
    monkeypatch.setattr(model_speed, "PRODUCTS", ((8, 8, 8),))
    monkeypatch.setattr(model_speed, "ROOM", 10**5)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_: None)


@pytest.mark.parametrize("name", ["attention", "train-image-2", "memory", "fsdp", "sample", *VIDEO])
def test_a_part_is_measured_on_a_cpu(
    name: str, tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "memory":  # a CPU's way to tell memory takes as long as all the rest
        monkeypatch.setattr(model_speed, "most_held", lambda run: 1)
    assert bench(tmp_path, "--part", name) == 0
    result = read(tmp_path / f"{name}.json")
    assert result["done"] and result["tiny"] and result["under_way"] is None and result["machine"]["device"]
    wrong = [row for row in result["rows"] if "error" in row and "xformers" not in row["error"]]
    assert result["rows"] and not wrong
    told = (tmp_path / "gpu.md").read_text()
    for row in result["rows"]:
        assert f"| {row.get('way', row['row'])} |" in told
    if name == "attention":
        assert {row["taken"] for row in result["rows"]} == {"math", "sdpa"}
        assert all({"sdpa flash", "sdpa, heads padded to 80"} <= row["seconds"].keys() for row in result["rows"])
    elif name == "sample":
        assert all(row["networks_apart"] < 1e-5 for row in result["rows"])
    elif name == "memory":
        theirs, ours = result["rows"][:2]
        assert theirs["way"].startswith("diffusers") and ours["memory"] < theirs["memory"]


@pytest.mark.slow
def test_all_parts_run_in_processes_of_their_own(tmp_path: Path) -> None:
    assert bench(tmp_path, "--tiny") == 0
    assert "Not run" not in (tmp_path / "gpu.md").read_text()


WHOLE = {"rows": [], "machine": {"device": "x"}, "tiny": True, "error": None, "under_way": None, "done": True}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the processes of parts do, by name: Python that has the result `r` and may `end()` with it."""
    scripts: dict[str, str] = {}

    def command(name: str, path: Path, *_: Any, **__: Any) -> list[str]:
        begin = f"import json, os, pathlib, time\np = pathlib.Path({str(path)!r})\n"
        begin += f"r = json.loads(p.read_text()) if p.exists() else {dict(WHOLE, done=False)!r}\n"
        begin += "end = lambda **more: p.write_text(json.dumps(r | more))\n"
        return [sys.executable, "-S", "-c", begin + scripts[name.removesuffix("-1")]]

    monkeypatch.setattr(bench_gpu, "_command", command)
    monkeypatch.setattr("mmdit.tools.bench_output.device_name", lambda device: "x")
    return scripts


def test_what_fails_leaves_the_rest(
    tmp_path: Path, scripted: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    once = "['row'] in [[row['row']] for row in r['rows']]"
    scripted |= {
        "train-joint": "raise RuntimeError('no kernels here')",
        "memory": f"end(done=True) if {once} else (end(under_way='row'), time.sleep(60))",  # a hang
        "fsdp": f"end(done=True) if {once} else (end(under_way='row'), os.kill(os.getpid(), 9))",  # no memory left
        "sample": "end(done=True)",
    }
    words = [word for name in scripted for word in ("--part", name)]
    assert bench(tmp_path, *words, "--limit", "2") == 4
    told = capsys.readouterr()
    assert "train-joint-1: ended by exit code 1: RuntimeError: no kernels here" in told.out
    assert "sample: measured" in told.out and "got train-joint-1;" in told.err
    errors = {name: read(tmp_path / f"{name}.json")["rows"][0]["error"] for name in ("memory", "fsdp")}
    assert errors == {"memory": "no end within 2 s", "fsdp": "ended by signal 9"}
    page = (tmp_path / "gpu.md").read_text()
    assert "Not all of it: ended by exit code 1" in page and "| row | ended by signal 9 |" in page
    assert "Not run: `attention`, `train-image-2`" in page
    # The next call measures what is not done, and nothing else.
    scripted |= dict.fromkeys(("memory", "fsdp", "sample"), "raise SystemExit('measured again')")
    scripted["train-joint"] = "end(done=True, error=None)"
    assert bench(tmp_path, *words) == 0


def test_a_row_that_was_stopped_from_outside_is_measured_again(tmp_path: Path, scripted: dict[str, str]) -> None:
    (tmp_path / "sample.json").write_text(json.dumps(WHOLE | {"done": False, "under_way": "row"}))
    scripted["sample"] = "end(done=True) if r['under_way'] is None else exit(1)"
    assert bench(tmp_path, "--part", "sample") == 0
    assert read(tmp_path / "sample.json")["rows"] == []  # not given up as what a process of ours ended in


def test_a_part_goes_on_after_the_rows_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(name: str) -> list[dict[str, Any]]:
        measured.append(name)
        if measured == ["a", "b"]:
            raise RuntimeError("the device is lost")
        return [{"way": name}]

    def rows(device: str, runs: int) -> Iterator[Any]:
        yield from ((name, lambda name=name: measure(name)) for name in "abc")

    monkeypatch.setattr(gpu_parts, "parts", lambda tiny: {"p": Part("P", "steps", rows)})
    with pytest.raises(RuntimeError, match="lost"):
        measure_part("p", tmp_path / "p.json", "cpu", 1, tiny=True)
    assert read(tmp_path / "p.json")["under_way"] == "b" and not read(tmp_path / "p.json")["done"]
    measure_part("p", tmp_path / "p.json", "cpu", 1, tiny=True)
    result = read(tmp_path / "p.json")
    assert measured == ["a", "b", "b", "c"] and [row["way"] for row in result["rows"]] == ["a", "b", "c"]
    assert result["done"] and result["under_way"] is None


def test_a_missing_package_is_a_line(tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mmdit.pipelines.sampling_speed")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert bench(tmp_path, "--part", "sample") == 4
    assert "Not all of it: this needs a package that is not installed: diffusers." in (tmp_path / "gpu.md").read_text()


def test_other_results_and_unknown_parts_are_refused(
    tmp_path: Path, scripted: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "--part", "huge") == 2
    assert "no such part" in capsys.readouterr().err
    (tmp_path / "fsdp.json").write_text(json.dumps(WHOLE | {"machine": {"device": "y"}}))
    assert bench(tmp_path, "--part", "sample") == 2
    assert "results of another device" in capsys.readouterr().err
    (tmp_path / "fsdp.json").write_text("[]")
    assert bench(tmp_path) == 2
    assert "no result of this command" in capsys.readouterr().err


def test_the_table_tells_distances_and_another_default(tmp_path: Path) -> None:
    known = parts(tiny=False)
    step = {"seconds": 0.2, "clips_per_s": 440.0, "flops_per_s": 3e14, "share": 0.5, "sheet_share": 0.3, "memory": 5e9}
    quick = {"seconds": 0.1, "clips_per_s": 660.0, "memory": None}
    rows = [{"way": "theirs", **step, "target": 550.0}, {"way": "ours", **step, **quick, "target": 550.0}]
    kernels = {"seconds": {"math": 2.0, "sdpa": 1.0}, "errors": {"xformers": "not there"}, "flops": 10**12}
    shapes = [{"row": "s", **kernels, "fastest": "sdpa", "best": "sdpa", "taken": "math", "slower": 2.0},
              {"row": "t", **kernels, "fastest": "sdpa", "best": "sdpa", "taken": "sdpa", "slower": 1.0}]  # fmt: skip
    for name, found in {"train-image-64": rows, "attention": shapes}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(WHOLE | {"rows": found}))
    lines = table(tmp_path, known).splitlines()
    assert "| theirs | 200.0 | 440.0 | 300 | 50% | 30% | 5 | 1.00 | 1 | 550 clips/s | -20% |" in lines
    assert "| ours | 100.0 | 660.0 | 300 | 50% | 30% |  | 2.00 |  | 550 clips/s | +20% |" in lines
    assert "| s | 2000.00 | 1000.00 | - | sdpa | 1 | sdpa | **math, 2.00 times as long** |" in lines
    assert "| t | 2000.00 | 1000.00 | - | sdpa | 1 | sdpa | sdpa |" in lines
    assert "- xformers: not there" in lines and any(line.startswith("Not run: `train-image-128`") for line in lines)


def test_a_step_on_parts_of_the_weights_is_the_same_step() -> None:
    trained = Trained(make_case("image", 2, tiny=True), torch.device("cpu"))
    whole, parted = (Way("", "float32", averaged=True, sharded=sharded) for sharded in (False, True))
    with group_of_one("cpu"):
        for way in (whole, parted, whole, parted):  # the average begins as the weights after a first step
            trained.step(way)
        pairs = list(zip(trained._weights(whole), trained._weights(parted), strict=True))
        for weight, part in pairs:
            assert isinstance(part, DTensor)
            torch.testing.assert_close(part.full_tensor(), weight)
        averages = [list(trained._average(way).averages.values()) for way in (whole, parted)]
        torch.testing.assert_close(averages[1], averages[0])
    assert any(not torch.equal(a, w) for a, w in zip(averages[0], trained._weights(whole), strict=True))
