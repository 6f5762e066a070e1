"""The runs of a study as child processes, as many in parallel as there are devices."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.programs.training_process import TrainingProcess, failure_reason
from tinyllm.runs.layout import LOCK
from tinyllm.studies.sweep.gpu_slots import equal_groups, run_in_slots, visible_gpus
from tinyllm.utils.locks import is_held
from tinyllm.utils.platforms import usable_cpus
from tinyllm.utils.stop_signal import StopRequest

POLL_S = 0.2
GRACE_S = 60.0
"""Seconds that a stopped run has for its last step and checkpoint."""
Environment = Mapping[str, str]
"""Environment variables that a device slot sets for its run."""


@dataclass(frozen=True, kw_only=True)
class PooledRun:
    """A training run for the pool to start, or to continue from its checkpoint."""

    label: str
    """Name for display."""
    path: Path
    """The run directory."""
    settings: Sequence[str]
    """The settings of ``python -m tinyllm.train``, in Hydra's grammar."""
    flags: Sequence[str] = ()
    """The flags before them."""

    @property
    def command(self) -> list[str]:
        """The arguments as a user would type them."""
        return [*self.flags, *unquoted(self.settings), f"run.dir={self.path}"]

    @property
    def arguments(self) -> list[str]:
        """The arguments of the child process, which continues from a checkpoint."""
        return [*self.command, "resume=auto"]

    @property
    def log(self) -> Path:
        """Path of the file that receives the run's output."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def error_file(self) -> Path:
        """Path of the file that receives the run's first error line."""
        return self.path.with_name(f"{self.path.name}.error")

    def reason(self, code: int) -> str:
        """Why the run failed with this exit code, in one line."""
        return failure_reason(code, log=self.log, error_file=self.error_file)


def device_slots(parallel: int | str, *, per_run: int, on_gpu: bool) -> list[Environment]:
    """The environment of each run that may go on at once.

    Args:
        parallel: number of runs, or auto: one on a CPU, as many as the GPUs allow otherwise.
        per_run: GPUs per run.
        on_gpu: whether the runs use GPUs.

    Raises:
        UserError: the machine has too few GPUs.
    """
    if not on_gpu:
        number = 1 if parallel == "auto" else int(parallel)
        # By default every process starts a thread per core; several of them slow each other down.
        threads = max(1, usable_cpus() // number)
        shared = {} if number == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        return [shared] * number
    groups = equal_groups(visible_gpus(), per_run)
    number = len(groups) if parallel == "auto" else int(parallel)
    if number > len(groups):
        hint = f"at most {len(groups)}: this machine has {len(visible_gpus())} GPUs, and a run takes {per_run}"
        raise UserError("not enough GPUs for that many runs", key="parallel", value=parallel, hint=hint)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups[:number]]


def run_all(
    runs: Sequence[PooledRun], slots: Sequence[Environment], stop: StopRequest, watch: Callable[[PooledRun], None]
) -> Iterator[tuple[PooledRun, int]]:
    """Run everything, in order; yields each run with its exit code when it has ended. Ends early after a signal.

    Args:
        watch: called about five times a second with each running run.
    """
    for run, code in run_in_slots(runs, slots, partial(_run_unless_stopped, stop=stop, watch=watch)):
        if code is not None and stop.signal is None:
            yield run, code


def _run_unless_stopped(
    run: PooledRun, environment: Environment, *, stop: StopRequest, watch: Callable[[PooledRun], None]
) -> int | None:
    return train(run, environment, stop, watch) if stop.signal is None else None


def train(run: PooledRun, environment: Environment, stop: StopRequest, watch: Callable[[PooledRun], None]) -> int:
    """Train one run to its end and return its exit code. If another process is training it, wait for that first."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    # After a kill, the old process may still be saving its checkpoint.
    while is_held(run.path / LOCK) and stop.signal is None:
        time.sleep(POLL_S)
    process = TrainingProcess(
        run.arguments, run_dir=run.path, log=run.log, error_file=run.error_file, environ=environment, fork=True
    )
    try:
        while stop.signal is None and not process.ends_within(POLL_S):
            watch(run)
    finally:
        process.stop(grace_s=GRACE_S)
    return process.wait()
