"""Fixtures of the tests of faults."""

import pytest

from tests.support.training_runs import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting that chooses a small text."""
    return f"dataset.path={write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')}"
