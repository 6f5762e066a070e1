"""Fixtures for tests with several ranks."""

from pathlib import Path

import pytest

from tests.support.training_runs import SMALL, train, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, own_token_cache: Path) -> str:
    """The setting that selects a small text whose tokens are cached."""
    folder = tmp_path_factory.mktemp("corpus")
    chosen = f"dataset.path={write_corpus(folder / 'words.txt')}"
    assert train(*SMALL, "dataset=text", chosen, "trainer.max_steps=1", f"run.dir={folder / 'run'}") == 0
    return chosen
