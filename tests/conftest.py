"""Fixtures shared by all tests."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Small models gain nothing from threads, and threads that wait for each other slow everything else down. Set before
# torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.support.fixtures"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``every`` leaves to the slow tests.

    The wheel's tests come first: in one chunk of work their environment is made by one worker only.
    """
    items.sort(key=lambda item: item.path.name != "test_wheel.py")
    seen: Counter[str] = Counter()
    for item in items:
        every = item.get_closest_marker("every")
        if every is None:
            continue
        name = item.nodeid.partition("[")[0]
        if seen[name] % every.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps on a small text of letters and line ends; its tokenizer has no end-of-text."""
    from tests.support.training_runs import SMALL, train, write_corpus

    folder = tmp_path_factory.mktemp("tiny_run")
    text = write_corpus(folder / "words.txt")
    text.write_text(text.read_text(encoding="utf-8").replace(" the ", "\nthe "), encoding="utf-8")
    run = folder / "run"
    data = ("dataset=text", f"dataset.path={text}")
    assert train(*SMALL, *data, "trainer.max_steps=20", "trainer.eval_every=10", f"run.dir={run}") == 0
    return run
