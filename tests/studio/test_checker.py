"""The process that checks settings: lost, it is replaced; it asks nothing of the network."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.studio import folder
from tinyllm.studio import checker
from tinyllm.studio.checker import Checker
from tinyllm.studio.checking import ON_HUB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_lost_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        checks = Checker(folder(tmp_path))
        try:
            first = await checks.examine(["model=pico", "seed=x"])
            assert first.problem is not None and first.problem.text == "wrong type (seed=x): must be a whole number"
            assert checks._pool is not None
            [worker] = checks._pool._processes.values()
            os.kill(worker.pid, signal.SIGKILL)
            lost = await checks.examine(["model=pico"])
            assert lost.problem is not None and "was lost" in lost.problem.text
            again = await checks.examine(["model=pico"])
            assert again.problem is None and again.figures is not None
            # A set of the hub is looked up when the run starts, not while a person types.
            hub = await checks.examine(["dataset=tinystories"])
            assert hub.problem is None and ON_HUB in hub.notes
            monkeypatch.setattr(checker, "PATIENCE_S", 0.0)
            late = await checks.examine(["model=pico"])
            assert late.problem is not None and "took longer" in late.problem.text and checks._pool is None
        finally:
            checks.close()

    asyncio.run(story())
