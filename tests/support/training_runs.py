"""Training runs small enough for a test, through the real entry point."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import tinyllm.train
from tinyllm.runs import state_diff as compare_states
from tinyllm.runs.checkpoint import find

SMALL = (
    "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.d_ff=64", "model.max_seq_len=16",
    "trainer.batch_size=4", "trainer.precision=fp32", "trainer.log_every=1", "trainer.eval_every=0",
    "trainer.sample_every=0", "trainer.checkpoint_every=0", "optimizer=adamw", "optimizer.lr=3e-4",
)  # fmt: skip
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
]


def write_corpus(path: Path, *, n_words: int = 1500, seed: int = 0) -> Path:
    """A text of common words in random order."""
    words = random.Random(seed).choices(WORDS, k=n_words)
    path.write_text(" ".join(words) + "\n", encoding="utf-8")
    return path


def train(*overrides: str) -> int:
    """Run ``python -m tinyllm.train`` in this process; returns its exit code."""
    with mock.patch.object(sys, "argv", ["tinyllm-train", *overrides]), mock.patch.dict(os.environ):
        try:
            tinyllm.train.main()
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError("main() did not end the process")


def train_elsewhere(*overrides: str, **keywords: Any) -> subprocess.Popen[str]:
    """Start ``python -m tinyllm.train`` as a process of its own."""
    command = [sys.executable, "-m", "tinyllm.train", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)


def digest(run: Path, *, prefer: str = "last") -> str:
    """sha256 over every tensor and counter of a run's checkpoint; wall clock excluded."""
    return compare_states.digest(compare_states.contents(find(run, prefer=prefer)))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what depends on the clock."""
    return compare_states.comparable_records(run / "metrics.jsonl")


def logged(run: Path, key: str) -> list[Any]:
    """The values of one metric in the order of the steps."""
    return [record[key] for record in metrics(run) if key in record]
