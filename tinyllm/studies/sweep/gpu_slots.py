"""The GPUs of this machine in equal groups, each of which runs one job at a time."""

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import DictConfig

from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.programs.training_process import TrainingProcess
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job_record import JobRecord
from tinyllm.studies.sweep.job_run import run_recorded

POLL_S = 0.2
Item = TypeVar("Item")
Slot = TypeVar("Slot")
Outcome = TypeVar("Outcome")


def run_in_slots(
    items: Iterable[Item], slots: Sequence[Slot], run: Callable[[Item, Slot], Outcome]
) -> Iterator[tuple[Item, Outcome]]:
    """Run every item in the first free slot, in order; yields each item with its outcome as soon as it has ended."""
    if len(slots) == 1:  # needs no threads, so a signal handler may raise into the run
        yield from ((item, run(item, slots[0])) for item in items)
        return
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    with ThreadPoolExecutor(max_workers=len(slots)) as pool:
        runs = {pool.submit(_run_in_free_slot, free, run, item): item for item in items}
        for done in as_completed(runs):
            yield runs[done], done.result()


def _run_in_free_slot(free: "queue.SimpleQueue[Slot]", run: Callable[[Item, Slot], Outcome], item: Item) -> Outcome:
    slot = free.get()
    try:
        return run(item, slot)
    finally:
        free.put(slot)


@dataclass(frozen=True, kw_only=True)
class GpuSlots:
    """Runs the jobs of a sweep in parallel, each as one ``torchrun`` on a group of GPUs.

    Args:
        groups: the GPUs of each group, as in CUDA_VISIBLE_DEVICES.
        nproc: ranks of each job.
        flags: flags before the settings of every job.
    """

    groups: Sequence[Sequence[str]]
    nproc: int
    flags: Sequence[str]

    def run(self, directory: SweepDir, records: Sequence[JobRecord]) -> None:
        """Run the jobs, as many at once as there are groups, until all have ended or the sweep is asked to stop."""
        for _ in run_in_slots(records, self.groups, partial(self._run_job, directory)):
            pass

    def _run_job(self, directory: SweepDir, record: JobRecord, gpus: Sequence[str]) -> None:
        if not directory.stop_requested:
            run_recorded(directory, record, partial(self.train, directory, record, gpus))

    def train(self, directory: SweepDir, record: JobRecord, gpus: Sequence[str], error_file: Path) -> int:
        """Train one job on these GPUs; returns its exit code.

        Args:
            error_file: file for the first error line.
        """
        settings = [*unquoted(record.overrides), f"run.dir={directory.run_dir(record)}", "resume=auto"]
        process = TrainingProcess(
            [*self.flags, *settings],
            nproc=self.nproc,
            environ={"CUDA_VISIBLE_DEVICES": ",".join(gpus)},
            log=directory.log(record),
            append=True,
            error_file=error_file,
        )
        while process.poll() is None:
            if directory.stop_requested:
                return process.stop()
            time.sleep(POLL_S)
        return process.wait()


def slots_for(cfg: DictConfig, flags: Sequence[str]) -> GpuSlots | None:
    """The slots that ``strategy.gpus_per_job`` asks for; None: Hydra's launcher runs the jobs.

    Args:
        flags: flags before the settings of every job.

    Raises:
        UserError: the machine has too few GPUs for a job, or a job has fewer GPUs than ranks.
    """
    per_job = cfg.strategy.get("gpus_per_job")
    if per_job is None:
        return None
    nproc = cfg.strategy.get("nproc_per_node") or per_job
    if nproc > per_job:
        hint = f"at most strategy.gpus_per_job={per_job}"
        raise UserError("more processes than GPUs", key="strategy.nproc_per_node", value=nproc, hint=hint)
    return GpuSlots(groups=equal_groups(visible_gpus(), per_job), nproc=nproc, flags=flags)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in map(str.strip, visible.split(",")) if name not in ("", "-1")]
    return [str(index) for index in range(torch.cuda.device_count())]


def equal_groups(devices: Sequence[str], size: int) -> list[list[str]]:
    """Split devices into groups of ``size``; a remainder stays idle.

    Raises:
        UserError: there are fewer devices than one group needs.
    """
    if len(devices) < size:
        number = len(devices) if devices else "none"
        hint = f"this machine has {number}; without the key, jobs run one after the other"
        raise UserError("not enough GPUs for a job", key="strategy.gpus_per_job", value=size, hint=hint)
    return [list(devices[begin : begin + size]) for begin in range(0, len(devices) - size + 1, size)]
