"""Preparation in the background, in shards small enough for a test."""

import sys
import time
from pathlib import Path

import pytest

from tinyllm.data import build_cache, journal
from tinyllm.data.encode import encode_documents
from tinyllm.programs import background_preparation

PIECE, BATCH, SHARD = 64, 512, 1024
EARLY = ("dataset.start_early=true", f"dataset.shard_tokens={SHARD}")


def use_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process prepare data in small shards."""
    monkeypatch.setattr(build_cache, "SHARD_TOKENS", SHARD)
    monkeypatch.setitem(encode_documents.__kwdefaults__, "piece", PIECE)
    monkeypatch.setitem(encode_documents.__kwdefaults__, "batch", BATCH)


def prepare_slowly(monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.0, gate: Path | None = None) -> None:
    """Let the process that prepares data for this one do it in small shards.

    Args:
        seconds: its pause after each of them.
        gate: it waits after the second shard of training data until this file exists.
    """
    code = f"from tests.support import early_start as e; e.serve({seconds}, {None if gate is None else str(gate)!r})"
    monkeypatch.setattr(background_preparation, "COMMAND", (sys.executable, "-c", code))


def serve(seconds: float, gate: str | None) -> None:
    """Body of that process."""
    fault, ended = journal.fault, []

    def paused(point: str) -> None:
        ended.append(point)
        time.sleep(seconds)
        while gate is not None and len(ended) == gate_after() and not Path(gate).exists():
            time.sleep(0.02)
        fault(point)

    def gate_after() -> int:
        """The second shard of training data; those of validation come first, and are one or two."""
        return 4

    with pytest.MonkeyPatch.context() as patch:
        use_small_shards(patch)
        patch.setattr(journal, "fault", paused)
        background_preparation.main()
