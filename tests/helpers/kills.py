"""Ending work at a write point, as kill -9 would."""

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

import pytest

from mmdit import files


def killed_at(monkeypatch: pytest.MonkeyPatch, fault: str, work: Callable[[], Any]) -> bool:
    """Does `work` in a fork of this process under MMDIT_FAULT=`fault`; whether that killed it."""
    monkeypatch.setenv("MMDIT_FAULT", fault)
    files._seen.clear()
    process = multiprocessing.get_context("fork").Process(target=work, daemon=False)
    process.start()
    process.join(120)
    monkeypatch.delenv("MMDIT_FAULT")
    assert process.exitcode in (0, -signal.SIGKILL), (fault, process.exitcode)
    return process.exitcode != 0
