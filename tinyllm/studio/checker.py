"""Asks the helper process that checks settings, so that the pages never wait for it."""

import asyncio
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tinyllm.config.targets import work_named
from tinyllm.studio.program import Settings
from tinyllm.studio.report import Problem, Report
from tinyllm.utils.stop_signal import end_with_parent

PATIENCE_S = 60.0
"""Seconds after which a check is given up. Reading a large folder of texts takes long the first time."""


class Checker:
    """Checks settings of ``train`` in one process, which is started when it is first needed.

    Args:
        settings: of the studio.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool: ProcessPoolExecutor | None = None

    async def examine(self, arguments: Sequence[str]) -> Report:
        """What the settings say; see :func:`tinyllm.studio.checking.examine`."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._submit(list(arguments))), PATIENCE_S)
        except TimeoutError:
            self.close()
            text = f"the check took longer than {PATIENCE_S:.0f} seconds; the program checks again when it starts"
        except BrokenProcessPool:
            self.close()
            text = "the process that checks settings was lost, perhaps for lack of memory; try again"
        return Report(problem=Problem(text=text))

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            # Without waiting, the pool's thread may close its pipe while the interpreter ends and writes to it.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _submit(self, arguments: list[str]) -> "Future[Report]":
        if self._pool is None:
            # spawn: this process has threads, which a fork would not survive
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)
        return self._pool.submit(_examine, arguments, self.settings)


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the studio, which ends this process
    end_with_parent()
    work_named("tinyllm.studio.checking:prepare")()


def _examine(arguments: list[str], settings: Settings) -> Report:
    report: Report = work_named("tinyllm.studio.checking:examine")(arguments, settings)
    return report
