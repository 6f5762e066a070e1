"""Bitwise repeatable arithmetic, for the time of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(wanted: str | bool, device: torch.device) -> Iterator[None]:
    """Use torch's deterministic algorithms inside the block.

    Filling uninitialised memory, which torch adds for debugging, is left off: it costs time and, as a test shows,
    changes no bit.

    Args:
        wanted: true, false, or auto: on a CPU.
    """
    on = device.type == "cpu" if wanted == "auto" else bool(wanted)
    if not on:
        yield
        return
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    debugging: Any = torch.utils.deterministic  # its attribute is made at run time
    before = torch.are_deterministic_algorithms_enabled(), debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        debugging.fill_uninitialized_memory = before[1]
