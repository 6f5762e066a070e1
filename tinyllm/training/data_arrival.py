"""The data of the next step: there, or still being prepared when training starts early (``dataset.start_early``)."""

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep

from tinyllm.data.shards import ShardedSampler
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.utils.stop_signal import Stopping

MISSING, READY, COMPLETE = 0.0, 1.0, 2.0
POLL_S = 0.1
"""Seconds between two looks at whether the data of the next step are there."""


class AllData:
    """All data are there; the base of :class:`ArrivingData`."""

    def wait(self, sequences: int, *, stopping: Stopping, tell: Callable[[], object]) -> bool:
        """Wait until the data of a step are there on all ranks; every rank has to call it.

        Args:
            sequences: number of training samples, from the first of the run, that are needed.
            stopping: whether any rank has received a signal to stop.
            tell: called once if there is something to wait for.

        Returns:
            Whether they are there; if not, a signal has come.

        Raises:
            UserError: they will never be: the preparation failed.
        """
        return True


@dataclass
class ArrivingData(AllData):
    """Data that are being prepared shard by shard."""

    sampler: ShardedSampler
    strategy: Strategy
    has_all: bool = False
    """All ranks have all data. They learn it in the same step, so that all stop asking."""

    def wait(self, sequences: int, *, stopping: Stopping, tell: Callable[[], object]) -> bool:
        told = False
        while not self.has_all:
            own = READY if self.sampler.is_ready(sequences - 1) else MISSING
            own = COMPLETE if self.sampler.has_all_data else own
            status = min(row[0] for row in self.strategy.gather([own]))
            self.has_all = status == COMPLETE
            if status != MISSING:
                return True
            if not told:
                tell()
                told = True
            if stopping():
                return False
            sleep(POLL_S)
        return True
