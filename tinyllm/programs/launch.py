"""A run in several processes started by the command itself; :mod:`tinyllm.programs.torchrun` is the other side."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.programs.training_process import TrainingProcess
from tinyllm.utils.environment import started_processes
from tinyllm.utils.stop_signal import HANDLED, unless_nohup

PER_CORE, LEAST_LIMIT = 4, 64
"""Ranks per CPU core, and ranks on any machine, above which ``nproc_per_node`` is taken for a mistake."""


def launched(cfg: DictConfig, invocation: Invocation) -> int | None:
    """Run in ``strategy.nproc_per_node`` processes if that is set, and return the exit code of the run.

    Returns:
        None if this process is to train: a single process is asked for, or it is a rank itself.

    Raises:
        UserError: too many processes, or a setting that only a sweep uses.
    """
    nproc, gpus_per_job = cfg.strategy.get("nproc_per_node"), cfg.strategy.get("gpus_per_job")
    if started_processes():
        return None
    if gpus_per_job is not None:
        hint = "it assigns GPUs to jobs: add -m, or leave it out"
        raise UserError(
            "the key only has an effect in a sweep", key="strategy.gpus_per_job", value=gpus_per_job, hint=hint
        )
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


def train_in_processes(arguments: Sequence[str], *, nproc: int) -> int:
    """Run ``python -m tinyllm.train <arguments>`` in several processes, forward signals to them, and wait.

    Returns:
        The exit code of the rank that failed first, 128 + the signal's number after a signal, or 0.
    """
    sys.stdout.flush()
    forwarder = SignalForwarder()
    handlers = {number: signal.signal(number, forwarder) for number in unless_nohup(HANDLED)}
    try:
        forwarder.child = TrainingProcess(arguments, nproc=nproc)
        return forwarder.child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class SignalForwarder:
    """A signal handler that sends the first signal on to a child process and kills the child at the second."""

    def __init__(self) -> None:
        self.child: TrainingProcess | None = None
        self.received = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.child is None:
            return
        if self.received > 1:
            self.child.process.kill()
        else:
            self.child.process.send_signal(number)
