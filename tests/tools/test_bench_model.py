"""`mmdit bench model`: every way is measured on tiny networks, and the table and the JSON tell the same."""

import json
from contextlib import nullcontext

import commands
import pytest

from mmdit.models import model_cost
from mmdit.tools import bench_model
from mmdit.training import attention_speed, model_speed, speed_step, speed_ways
from mmdit.training.model_speed import Case, measure, ways

TINY = ["bench", "model", "tiny", "--runs", "1", "--leave-out", "compiled"]


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_speed, "PRODUCTS", ((8, 8, 8), (16, 16, 16)))
    monkeypatch.setattr(model_speed, "ROOM", 10**5)


@pytest.mark.parametrize(("grid", "peers"), [("1x8x8", 1), ("2x8x8", 2)])
def test_all_ways_of_a_network_are_told(grid: str, peers: int, capsys: pytest.CaptureFixture[str]) -> None:
    few = [word for part in ("plain linear", "plain gelu", "attention by") for word in ("--leave-out", part)]
    assert commands.exit_code(*TINY, *few, "--grid", grid, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["figures"]
    rows = {row["way"]: row for row in told["ways"]}
    assert told["tokens"] == 4 * 16 if grid == "1x8x8" else 2 * 16
    assert not [row for row in told["ways"] if "error" in row]
    for precision in ("float32", "bfloat16"):
        assert sum(name.startswith("diffusers") and precision in name for name in rows) == peers
        assert {f"plain eager, {precision}", f"mmdit, {precision}"} <= rows.keys()
    assert rows["plain eager, float32"]["times"] == 1.0
    for row in told["ways"]:
        if not row["way"].startswith("product"):
            assert row["memory"] > 0 and row["tokens_per_s"] == pytest.approx(told["tokens"] / row["seconds"])


def test_the_table_has_the_ways_that_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.exit_code(*TINY, "--grid", "1x8x8", "--only", "float32", "--leave-out", "plain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device ") and "64 tokens" in lines[2]
    names = [line[:46].strip() for line in lines[4:]]
    assert "mmdit, float32" in names and "diffusers DiT, float32" in names
    assert not [name for name in names if "bfloat16" in name or "plain" in name]


def test_a_step_is_counted_as_three_forward_passes_of_the_batch() -> None:
    case = Case("DiT-S/2", "space", (1, 32, 32), 4)
    macs = model_cost(speed_ways.options(case), (1, 32, 32)).macs
    assert case.flops == 4 * macs * 2 * 3 and case.tokens == 4 * 256


def test_a_peer_is_counted_by_its_own_blocks() -> None:
    case = Case("DiT-S/2", "factorized", (16, 16, 16), 1)
    more, as_many = (model_speed._flops(case, model_speed.Way("x", "float32", peer=blocks)) for blocks in (12, 6))
    assert as_many == Case("DiT-S/2", "alternating", (16, 16, 16), 1).flops < case.flops < more


def test_the_memory_is_that_of_the_way() -> None:
    wanted = [model_speed.Way("kept", "float32"), model_speed.Way("again", "float32", checkpointing=1)]
    kept, again = measure(Case("tiny", "space", (1, 16, 16), 16), wanted, "cpu", runs=1)[-2:]
    assert 4 * 12e6 / 8 < again.memory < kept.memory


def test_ours_and_theirs_are_of_equal_size() -> None:
    case = Case("tiny", "space", (1, 8, 8), 2)
    trained = speed_step.Trained(case, model_speed.torch.device("cpu"))
    chosen = {way.name: way for way in ways(case, "cpu")}
    ours, theirs = (trained._weights(chosen[f"{name}, float32"]) for name in ("mmdit", "diffusers DiT"))
    sizes = [sorted(tuple(weight.shape) for weight in weights if weight.ndim == 2) for weights in (ours, theirs)]
    assert sizes[0].count((256, 64)) == sizes[1].count((256, 64)) == 2  # the first of each block's MLP


def test_what_cannot_run_here_is_a_line_of_the_table() -> None:
    case = Case("tiny", "space", (1, 8, 8), 1)
    wanted = [model_speed.Way("x", "float32", backend="xformers"), model_speed.Way("m", "float32", backend="math")]
    results = measure(case, wanted, "cpu", runs=1)[-2:]
    assert "xformers cannot run here" in results[0].error and not results[0].seconds
    assert not results[1].error and len(results[1].seconds) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--grid", "1x8"], "bad grid"), (["--layout", "round"], "unknown layout"), (["huge"], "unknown model preset")],
)
def test_bad_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.exit_code("bench", "model", *words) == 2
    assert message in capsys.readouterr().err


def test_attention_kernels_are_compared_by_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_model, "ON_CPU", 256 * 64)
    assert commands.exit_code("bench", "model", "tiny", "--attention", "--runs", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["figures"]
    assert len({row["shape"] for row in rows}) == 2 * 4  # one length of space, three of time; two precisions
    for row in rows:
        assert ("error" in row) == (row["kernel"] == "xformers"), row


def test_a_kernel_with_other_numbers_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"wrong": (lambda q, k, v: q, nullcontext), "right": attention_speed._calls(16, "cpu")["sdpa"]}
    monkeypatch.setattr(attention_speed, "_calls", lambda *_: calls)
    wrong, right = attention_speed.measure_attention(attention_speed.Shape("s", 2, 8, 2, 16), "float32", "cpu", 1)
    assert "off by" in wrong.error and not right.error and len(right.seconds) == 1
