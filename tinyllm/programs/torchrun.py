"""``python -m tinyllm.programs.torchrun <n> <settings>``: torchrun for one run on this machine.

Its exit code is that of the rank that failed first, and nothing is printed besides what the ranks print.
"""

import logging
import os
import signal
import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tinyllm.config.cli.main import tell
from tinyllm.errors import SIGNALLED
from tinyllm.utils.platforms import usable_cpus
from tinyllm.utils.stop_signal import HANDLED, end_with_parent


def main() -> None:
    """Start the ranks and exit as the run does."""
    nproc, *arguments = sys.argv[1:]
    end_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // int(nproc))))
    logging.disable(logging.CRITICAL)  # the ranks report their errors themselves
    handled = ",".join(["SIGQUIT", *(number.name for number in HANDLED)])
    flags = ["--standalone", f"--nproc-per-node={nproc}", f"--signals-to-handle={handled}", "-m", "tinyllm.train"]
    try:
        run.run(run.parse_args([*flags, *arguments]))
    except SignalException as stopped:
        sys.exit(SIGNALLED + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(exit_code(rank, failure))


def exit_code(rank: int, failure: Any) -> int:
    """The exit code of a rank that failed; a rank that a signal killed could not report it, so it is reported here."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        tell(f"error: a rank was lost (rank {rank}): {name} ended it; the last checkpoint is intact, resume from it")
        return 1
    return int(failure.exitcode)


if __name__ == "__main__":
    main()
