"""The runs of a comparison: programs of their own, as many at once as there are devices."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.config.cli.main import ERROR_FILE, SIGNALLED
from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.programs.training_process import shell_code
from tinyllm.runs.layout import LOCK, RUN_JSON
from tinyllm.studies.sweep.gpu_slots import gpus, parts_of
from tinyllm.utils.environment import for_several
from tinyllm.utils.files import renewed
from tinyllm.utils.locks import is_held
from tinyllm.utils.platforms import usable_cpus
from tinyllm.utils.stop_signal import PARENT, StopRequest

LOOK_EVERY_S = 0.2
GRACE_S = 60.0
"""Seconds that a run which was asked to stop has for its last step and checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training that is to be there."""

    label: str
    """For people."""
    path: Path
    """Its run directory."""
    settings: Sequence[str]
    """Of ``python -m tinyllm.train``, in Hydra's grammar."""
    flags: Sequence[str] = ()
    """What stands before them."""

    @property
    def arguments(self) -> list[str]:
        """What the program is started with: it goes on from a checkpoint that is there."""
        return [*self.command, "resume=auto"]

    @property
    def command(self) -> list[str]:
        """What a person would type for it."""
        return [*self.flags, *unquoted(self.settings), f"run.dir={self.path}"]

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def error_file(self) -> Path:
        """The first line of what went wrong."""
        return self.path.with_name(f"{self.path.name}.error")


@dataclass(frozen=True, kw_only=True)
class DeviceSlots:
    """Where runs go on at once: what differs in the environment of each."""

    environments: Sequence[Mapping[str, str]] = field(default_factory=lambda: [{}])

    def __len__(self) -> int:
        return len(self.environments)


def places(parallel: int | str, *, per_run: int, on_gpu: bool) -> DeviceSlots:
    """As many places as asked for, or as there are GPUs for.

    Args:
        parallel: a number, or auto.
        per_run: GPUs that one run takes.
        on_gpu: the runs take GPUs at all.

    Raises:
        UserError: more than the machine has.
    """
    if not on_gpu:
        number = 1 if parallel == "auto" else int(parallel)
        threads = max(1, usable_cpus() // number)
        shared = {} if number == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        return DeviceSlots(environments=[shared] * number)
    parts = parts_of(gpus(), per_run)
    if parallel != "auto" and int(parallel) > len(parts):
        hint = f"{len(parts)} at most: this machine has {len(gpus())} GPUs, and a run takes {per_run}"
        raise UserError("more runs at once than there are GPUs for", key="parallel", value=parallel, hint=hint)
    number = len(parts) if parallel == "auto" else int(parallel)
    return DeviceSlots(environments=[{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts[:number]])


def run_all(
    jobs: Sequence[Job],
    where: DeviceSlots,
    stop: StopRequest,
    *,
    look: Callable[[Job], None],
    ended: Callable[[Job, int], None],
) -> None:
    """Run the jobs in their order, each in the first place that is free; returns early after a signal.

    Args:
        look: called now and then with a job that runs.
        ended: called with each job and its exit code.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def use(environment: Mapping[str, str]) -> None:
        while stop.signal is None:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            code = run(job, environment, stop, look)
            if stop.signal is None:
                ended(job, code)

    if len(where) == 1:
        return use(where.environments[0])
    with ThreadPoolExecutor(max_workers=len(where)) as pool:
        for outcome in [pool.submit(use, environment) for environment in where.environments]:
            outcome.result()


def run(job: Job, environment: Mapping[str, str], stop: StopRequest, look: Callable[[Job], None]) -> int:
    """Run one job to its end; one that another process is busy with is waited for and then finished."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    while is_held(job.path / LOCK) and stop.signal is None:
        time.sleep(LOOK_EVERY_S)
    job.error_file.unlink(missing_ok=True)
    environ = {**for_several(os.environ), ERROR_FILE: str(job.error_file), PARENT: str(os.getpid()), **environment}
    with renewed(job.log) as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinyllm.train", *job.arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the comparison, which asks its runs to stop
        )
        while process.poll() is None and stop.signal is None:
            look(job)
            time.sleep(LOOK_EVERY_S)
        return shell_code(_ended(process))


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process that has ended, or is asked to."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def reason(job: Job, code: int) -> str:
    """Why a job did not finish, in one line."""
    if job.error_file.is_file():
        return job.error_file.read_text(encoding="utf-8").strip().removeprefix("error: ")
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if job.log.is_file() else []
    if code - SIGNALLED in signal.valid_signals():
        return f"{signal.Signals(code - SIGNALLED).name} ended it"
    return lines[-1] if lines else f"exit code {code}"


def has_begun(path: Path) -> bool:
    """Whether a run directory is there with its facts."""
    return (path / RUN_JSON).is_file()
