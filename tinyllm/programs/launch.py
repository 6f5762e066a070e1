"""Several processes for one run, started by the program itself: torchrun with a tidy end.

``python -m tinyllm.programs.launch <n> <settings>`` is torchrun for one run on this machine. Its exit code is that
of the rank that failed first, and nothing is printed besides what the ranks print.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.utils.environment import started_processes
from tinyllm.utils.files import open_append
from tinyllm.utils.platforms import signals, usable_cpus
from tinyllm.utils.stop_signal import unless_nohup

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation

FORWARDED = signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALLED = 128
PER_CORE, LEAST_LIMIT = 4, 64
"""Processes for one run, beyond which a number is a mistake, or a saved run that is to take the machine down."""


def launched(cfg: "DictConfig", invocation: "Invocation") -> int | None:
    """Start the processes that the configuration asks this program for; the exit code of the run.

    Returns:
        None when this process is to do the work itself.

    Raises:
        UserError: a setting that only a sweep can follow.
    """
    nproc, per_job = cfg.strategy.get("nproc_per_node"), cfg.strategy.get("gpus_per_job")
    if started_processes():
        return None
    if per_job is not None:
        hint = "it deals out GPUs to the jobs of a sweep: add -m, or leave it out"
        raise UserError("it has no effect on one run", key="strategy.gpus_per_job", value=per_job, hint=hint)
    if nproc is None:
        return None
    most = max(LEAST_LIMIT, PER_CORE * (os.cpu_count() or 1))
    if not 1 <= nproc <= most:
        hint = f"between 1 and {most} on this machine"
        raise UserError("value out of range", key="strategy.nproc_per_node", value=nproc, hint=hint)
    arguments = invocation.arguments
    if invocation.is_job:
        flags = [] if invocation.config_dir is None else ["--config-dir", invocation.config_dir]
        arguments = [*flags, *unquoted(invocation.overrides), f"run.dir={cfg.run.dir}", f"resume={cfg.resume}"]
    return train_in_processes(arguments, nproc=nproc)


def start(
    arguments: Sequence[str],
    *,
    nproc: int,
    environ: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start ``python -m tinyllm.train <arguments>`` in several processes, away from the terminal's Ctrl-C.

    Args:
        arguments: flags and settings as one types them.
        environ: what differs in the environment.
        output: a file to append standard output and errors to; None: as this process has them.
    """
    command = [sys.executable, "-m", "tinyllm.programs.launch", str(nproc), *arguments]
    environment = os.environ | (environ or {})
    if output is None:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with open_append(output) as stream:
        return subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def train_in_processes(arguments: Sequence[str], *, nproc: int) -> int:
    """Run ``python -m tinyllm.train <arguments>`` in several processes, pass signals on to them, and wait.

    Returns:
        The exit code of the rank that failed first, 128 + the signal's number after a signal, or 0.
    """
    sys.stdout.flush()
    with _forwarding() as running:
        running.append(start(arguments, nproc=nproc))
        return code_of(running[0].wait())


def code_of(returned: int) -> int:
    """The exit code as a shell would have it: 128 + the number of the signal that killed a process."""
    return returned if returned >= 0 else SIGNALLED - returned


@contextmanager
def _forwarding() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Pass the first signal on to the started process; the second one kills it."""
    running: list[subprocess.Popen[bytes]] = []
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in running:
            process.kill() if len(came) > 1 else process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in unless_nohup(FORWARDED)}
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Be torchrun."""
    nproc, *arguments = sys.argv[1:]
    from tinyllm.utils.stop_signal import end_with_parent

    end_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // int(nproc))))
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # what goes wrong the ranks say themselves
    handled = ",".join(["SIGQUIT", *(one.name for one in FORWARDED)])
    flags = ["--standalone", f"--nproc-per-node={nproc}", f"--signals-to-handle={handled}", "-m", "tinyllm.train"]
    try:
        run.run(run.parse_args([*flags, *arguments]))
    except SignalException as stopped:
        sys.exit(SIGNALLED + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(_explained(rank, failure))


def _explained(rank: int, failure: Any) -> int:
    """The exit code of a rank that failed; a rank that was killed could not say so itself."""
    if failure.exitcode < 0:
        from tinyllm.config.cli.main import tell

        name = signal.Signals(-failure.exitcode).name
        tell(f"error: a rank was lost (rank {rank}): {name} ended it; the last checkpoint is whole, resume from it")
        return 1
    return int(failure.exitcode)


if __name__ == "__main__":
    main()
