"""Fixtures shared by all tests."""

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
