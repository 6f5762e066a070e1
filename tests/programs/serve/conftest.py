"""A run to serve."""

from pathlib import Path

import pytest

from tests.support.training_runs import SMALL, train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mine"
    settings = ("model.max_seq_len=512", "trainer.seq_len=16", "trainer.max_steps=1", "tokenizer=byte")
    assert train(*SMALL, *settings, "dataset=text", corpus, f"run.dir={path}") == 0
    return path
