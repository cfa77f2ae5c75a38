"""Freed memory stays with the process where it is asked to, and goes back where it is not."""

import subprocess
import sys

import pytest

from mmdit.training.allocator import keep_freed_memory

FAULTS = """
import resource, torch
from mmdit.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(40 * 2**18).add(1)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (False, True):
    keep_freed_memory(keep)
    faults()
    print(faults())
"""


def test_kept_memory_is_not_faulted_in_again() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library cannot be told so")
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=60, check=True).stdout
    given_back, kept = map(int, told.split())
    assert given_back > 20 * max(1, kept)
