"""Freed memory stays in the process, measured by the page faults of allocating the same tensor again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from tinyllm.utils.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def make():
    torch.ones(16 * 2**20)  # 64 MiB
for _ in range(20):  # the allocator needs a few rounds to settle
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is used with glibc only")
@pytest.mark.slow
def test_freed_pages_are_reused() -> None:
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", PROGRAM, mode], check=True, capture_output=True, text=True).stdout
        )
        for mode in ("keep", "leave")
    }
    assert faults["keep"] < 100
    assert faults["leave"] > 5 * 16 * 2**10 / 1024  # at least one fault per 4 MiB, for any page size
