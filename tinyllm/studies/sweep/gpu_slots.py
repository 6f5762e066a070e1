"""Several multi-GPU jobs at once on one machine, each with GPUs of its own."""

import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.programs.training_process import TrainingProcess
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job import carry_out
from tinyllm.studies.sweep.job_record import Record

LOOK_EVERY_S = 0.2
Start = Callable[[SweepDir, Record, Sequence[str], Path], int]
"""Runs a job on some GPUs; gets the file for the first line of what goes wrong; returns the exit code."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The machine's GPUs in equal parts.

    Args:
        parts: the GPUs of each part, as CUDA_VISIBLE_DEVICES names them.
        start: runs one job.
    """

    parts: Sequence[Sequence[str]]
    start: Start

    def run(self, directory: SweepDir, records: Sequence[Record]) -> None:
        """Run the jobs, as many at once as there are parts; a job waits until a part is free."""
        waiting: queue.SimpleQueue[Record] = queue.SimpleQueue()
        for record in records:
            waiting.put(record)

        def use(part: Sequence[str]) -> None:
            while not directory.stopping:
                try:
                    record = waiting.get_nowait()
                except queue.Empty:
                    return
                carry_out(directory, record, partial(self.start, directory, record, part))

        with ThreadPoolExecutor(max_workers=len(self.parts)) as pool:
            for outcome in [pool.submit(use, part) for part in self.parts]:
                outcome.result()


def slots_for(cfg: DictConfig, flags: Sequence[str]) -> Slots | None:
    """The parts that a job's configuration asks for; None: jobs run one after the other, or as the launcher says.

    Args:
        flags: what stands before the settings of every job.

    Raises:
        UserError: the machine has too few GPUs, or a job has too few for its processes.
    """
    per_job = cfg.strategy.get("gpus_per_job")
    if per_job is None:
        return None
    nproc = cfg.strategy.get("nproc_per_node") or per_job
    if nproc > per_job:
        hint = f"at most strategy.gpus_per_job={per_job}"
        raise UserError("more processes than GPUs", key="strategy.nproc_per_node", value=nproc, hint=hint)

    def run_on(directory: SweepDir, record: Record, part: Sequence[str], error_file: Path) -> int:
        settings = [*unquoted(record.overrides), f"run.dir={directory.run_dir(record)}", "resume=auto"]
        child = TrainingProcess(
            [*flags, *settings],
            log=directory.log(record),
            append=True,
            error_file=error_file,
            nproc=nproc,
            environ={"CUDA_VISIBLE_DEVICES": ",".join(part)},
        )
        while child.poll() is None:
            if directory.stopping:
                return child.stop()
            time.sleep(LOOK_EVERY_S)
        return child.wait()

    return Slots(parts=parts_of(gpus(), per_job), start=run_on)


def gpus() -> list[str]:
    """The GPUs of this machine that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one.strip() for one in visible.split(",") if one.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def parts_of(devices: Sequence[str], size: int) -> list[list[str]]:
    """Devices in parts of ``size``; those that are left over stay idle.

    Raises:
        UserError: there are too few for one part.
    """
    if len(devices) < size:
        there = f"this machine has {len(devices)}" if devices else "this machine has none"
        hint = f"{there}; leave it out, and jobs run one after the other"
        raise UserError("not enough GPUs for a job", key="strategy.gpus_per_job", value=size, hint=hint)
    return [list(devices[begin : begin + size]) for begin in range(0, len(devices) - size + 1, size)]
