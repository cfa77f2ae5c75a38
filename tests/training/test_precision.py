""" "auto" is the precision that this device is quick at, and a run goes on in the one that it was begun with."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from mmdit.errors import Refused
from mmdit.training import precision, processes, resume_rules
from mmdit.training.checkpoint import find_checkpoint, read_state
from mmdit.training.loop import train
from mmdit.training.precision import product_rates, quick_precision


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision._cpu_is_quick_at_bfloat16.cache_clear()
    yield
    precision._cpu_is_quick_at_bfloat16.cache_clear()


@pytest.mark.parametrize(("rates", "name"), [([2.0, 1.0], "float32"), ([1.0, 2.5], "bfloat16")])
def test_auto_is_what_the_processor_is_quick_at(rates: list[float], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.dtype, ...]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def measured(*dtypes: torch.dtype, shape: tuple[int, int, int]) -> list[float]:
        asked.append(dtypes)
        return rates

    monkeypatch.setattr(precision, "product_rates", measured)
    assert [quick_precision(), quick_precision()] == [name, name]
    assert asked == [(torch.float32, torch.bfloat16)]  # once


def test_the_rate_is_that_of_the_best_product_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([0.1, 0.1, 9.0, 2.0, 4.0, 0.5, 2.0, 0.5])  # seconds of the products, two precisions in turns
    clock = [0.0]

    def tick(*given: Any) -> None:
        clock[0] += next(lengths)

    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.nn.functional, "linear", tick)
    assert product_rates(torch.float32, torch.bfloat16, shape=(2, 3, 4)) == [2 * 24 / 2.0, 2 * 24 / 0.5]


def test_the_rate_of_a_real_product_is_one_of_a_processor() -> None:
    (rate,) = product_rates(torch.float32)
    assert 1e8 < rate < 1e15


def precision_of(folder: Path) -> str:
    return str(yaml.safe_load((folder / "config.yaml").read_text())["precision"])


def test_a_run_goes_on_in_the_precision_that_it_was_begun_with(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_rules, "quick_precision", lambda: "bfloat16")
    train(recipe(precision="auto", steps=2), tmp_path / "auto")
    assert precision_of(tmp_path / "auto") == "bfloat16"
    monkeypatch.setattr(resume_rules, "quick_precision", lambda: "float32")  # another machine
    train(recipe(precision="auto", steps=4, optimizer__decay="constant"), tmp_path / "other")
    assert precision_of(tmp_path / "other") == "float32"
    train(recipe(precision="auto", steps=2), tmp_path / "auto")
    assert precision_of(tmp_path / "auto") == "bfloat16"
    with pytest.raises(Refused, match=r"got precision=float32.*expected precision=bfloat16"):
        train(recipe(precision="float32", steps=2), tmp_path / "auto")


def test_a_run_of_an_older_mmdit_that_kept_auto_goes_on(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_rules, "quick_precision", lambda: "float32")
    train(recipe(precision="auto", steps=2, optimizer__decay="constant"), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("precision: float32", "precision: auto"))
    assert precision_of(tmp_path) == "auto"
    train(recipe(precision="auto", steps=3, optimizer__decay="constant"), tmp_path)
    assert read_state(find_checkpoint(tmp_path))["step"] == 3 and precision_of(tmp_path) == "float32"


def test_processes_that_chose_unlike_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two: Any = SimpleNamespace(num_processes=2, mixed_precision="bf16")
    for others, fits in (["bf16", True], ["no", False]):
        monkeypatch.setattr(processes, "gather_object", lambda mine, other=others: [*mine, other])
        if fits:
            processes._check_alike(two)
        else:
            with pytest.raises(Refused, match="got bf16, no.*set precision="):
                processes._check_alike(two)


@pytest.mark.parametrize("name", ["auto", "float32"])
def test_a_folder_that_cannot_be_is_refused_whatever_the_precision(recipe: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused):
        train(recipe(precision=name), tmp_path / ("x" * 300))
