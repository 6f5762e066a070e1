"""Writes small checkpoints from one or several ranks, without a run."""

from pathlib import Path

import pytest
import torch

from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.checkpoint_writer import Saver

TEXTS = {"config.yaml": "a: 1\n", "overrides.yaml": "[]\n", "tokenizer.json": "{}\n"}


def savers(directory: Path, *, writers: int = 1, asynchronous: bool = True, keep: int = 2) -> list[Saver]:
    """The savers of all ranks, and of one further rank that has nothing to write."""
    directory.mkdir(parents=True, exist_ok=True)
    return [
        Saver(
            directory,
            rank=rank,
            writers=writers,
            token="same",
            texts=TEXTS,
            facts={},
            keep=keep,
            asynchronous=asynchronous,
        )
        for rank in range(writers + 1)
    ]


def begin(ranks: list[Saver], step: int, *, size: int = 3, best: bool = False) -> None:
    """Begin a save of tensors filled with the step; each rank has its own tensor names."""
    for saver in ranks:
        name = f"w{saver.rank}"
        value = torch.full((size, 4), float(step))
        state = {"step": step, "optimizer": {name: {"m": value}}, "average": {"shadow": {name: value}, "updates": 1}}
        saver.begin(step=step, weights={name: value}, state=state, best=best)


def commit(ranks: list[Saver]) -> Path:
    """Wait for all ranks, then commit on rank 0, as training does."""
    for saver in ranks:
        saver.wait()
    assert all(saver.written() for saver in ranks)
    return ranks[0].commit()


def check(run: Path, *, step: int, writers: int) -> None:
    """Check that the newest checkpoint is that of ``step``, and that no checkpoint is damaged."""
    found = checkpoints.find(run, tell=lambda text: pytest.fail(text))
    assert found.step == step and found.writers == writers
    assert set(found.weights()) == {f"w{rank}" for rank in range(writers)} == set(found.state()["optimizer"])
    assert all(bool((tensor == step).all()) for tensor in found.weights().values())


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
