"""Work that processes share comes together in the order of the clips."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.evaluation.columns import TOGETHER, Column, ColumnCache
from mmdit.evaluation.protocol import Protocol
from mmdit.pipelines.evaluating import Work, measure
from mmdit.pipelines.process_group import Group

COUNT = 5 * TOGETHER + 3


class Numbers:
    """Clips that show their number, and remember which were read."""

    rows: Sequence[dict[str, Any]] = [{"label": str(number)} for number in range(COUNT)]
    size, fingerprint = (1, 1, 1), "numbers"

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def read(self, numbers: Sequence[int]) -> Tensor:
        self.seen.append(list(numbers))
        return torch.tensor(list(numbers)).view(-1, 1, 1, 1, 1).expand(-1, 3, 1, 1, 1)


def value(clips: Tensor, rows: Any) -> Tensor:
    assert [int(row["label"]) for row in rows] == clips[:, 0, 0, 0, 0].tolist()
    return clips[:, 0, 0, 0, 0]


def test_each_process_reads_its_parts_and_the_first_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def gather(found: list[Any]) -> list[Any]:
        told.extend(found)
        return list(told)

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    sets = []
    for index in (2, 1, 0):  # the first process gathers last here
        clips, group = Numbers(), Group(index, 3, "cpu", SimpleNamespace())
        work = Work(Protocol(samples=2), group, ColumnCache(None), lambda *_: None, probe=None)  # type: ignore[arg-type]
        columns = measure(work, clips, [Column("number", "", value)], "clips")
        sets.append(clips.seen)
        assert columns.keys() == ({"number"} if index == 0 else set())
    assert columns["number"].tolist() == list(range(COUNT))
    assert sorted(number for seen in sets for part in seen for number in part) == list(range(COUNT))
    assert all(len(seen) == 2 and seen[0][0] % TOGETHER == 0 for seen in sets)
