"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tinyshakespeare() -> Path:
    """The tiny Shakespeare text, which lies beside the checkout at the project's workplace and nowhere else."""
    path = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare.txt is not beside this checkout")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token cache of the test session, so that tests neither use nor fill the user's."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("TINYLLM_CACHE")
    os.environ["TINYLLM_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["TINYLLM_CACHE"]
    else:
        os.environ["TINYLLM_CACHE"] = before
