"""Composes the jobs of a sweep and hands them to Hydra's launcher."""

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from tinyllm.config.cli.arguments import check_override_grammar
from tinyllm.config.grammar import key_of, quote
from tinyllm.config.hydra_errors import explained
from tinyllm.errors import USER_ERROR, UserError, one_line
from tinyllm.runs.layout import LOCK
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.gpu_slots import GpuSlots
from tinyllm.studies.sweep.job import Job
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, RUNNING, WAITING, JobRecord
from tinyllm.studies.sweep.sweep_runner import POLL_S, Sweep
from tinyllm.utils.locks import is_held

IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
START_S = 60.0
"""Seconds after which a job recorded as running whose run directory is not locked counts as dead."""
QUEUE_S = 600.0
"""Seconds without any running job after which the waiting ones count as lost."""


@dataclass(kw_only=True)
class JobLauncher:
    """Runs jobs with what Hydra gives a sweeper."""

    config: DictConfig
    context: HydraContext
    task: TaskFunction

    @property
    def flags(self) -> list[str]:
        """The command line's flags that every job needs: its directory of option files."""
        sources = self.config.hydra.runtime.config_sources
        added = [str(source.path) for source in sources if source.provider == "command-line"]
        return [word for path in added for word in ("--config-dir", path)]

    def sweep_dir(self) -> SweepDir:
        """The sweep's directory. The default path gets a random suffix: two sweeps may start in the same second."""
        node = self.config.hydra
        path = str(node.sweep.dir)
        if not path:
            hint = "give a directory, or leave the key out"
            raise UserError("empty path", key="hydra.sweep.dir", value=path, hint=hint)
        if "hydra.sweep.dir" not in map(key_of, node.overrides.hydra):
            path = f"{path}_{secrets.token_hex(2)}"
            # The jobs compose from these overrides, so that each of them finds the same directory.
            with read_write(node), open_dict(node):
                node.sweep.dir = path
                node.overrides.hydra.append(f"hydra.sweep.dir={quote(path)}")
        return SweepDir(Path(path))

    def compose(self, job: Job) -> DictConfig:
        """The configuration of a job.

        Raises:
            UserError: the settings do not compose.
        """
        check_override_grammar(job.overrides, directories=self.flags[1::2])
        try:
            return self.context.config_loader.load_sweep_config(self.config, list(job.overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(error, list(job.overrides)) from error

    def sweep(
        self, directory: SweepDir, *, slots: GpuSlots | None, maximize: bool | None = None, metric: str | None = None
    ) -> Sweep:
        """A new sweep in this directory."""
        in_process = slots is None and self.config.hydra.launcher.get("_target_") == IN_PROCESS
        return Sweep(directory, in_process=in_process, maximize=maximize, metric=metric)

    def run(self, sweep: Sweep, records: Sequence[JobRecord], *, slots: GpuSlots | None) -> None:
        """Run jobs; their records hold the outcome.

        Args:
            slots: run the jobs on these groups of GPUs; None: Hydra's launcher runs them.
        """
        if not records or sweep.directory.stop_requested:
            return
        if slots is None and sweep.in_process:
            return self._launch(sweep, records)
        with sweep.polling():
            if slots is not None:
                slots.run(sweep.directory, records)
            else:
                self._launch_workers(sweep, records)

    def _launch(self, sweep: Sweep, records: Sequence[JobRecord]) -> None:
        """Call Hydra's launcher once. A job that raised outside of its run is recorded as failed."""
        launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=self.context, task_function=self.task
        )
        jobs = [[*record.overrides, f"hydra.job.name={quote(record.name)}"] for record in records]
        returns = launcher.launch(jobs, initial_job_idx=records[0].number)
        for record, returned in zip(records, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED:
                error = returned._return_value
                _fail(sweep.directory, record, f"{type(error).__name__}: {error}")

    def _launch_workers(self, sweep: Sweep, records: Sequence[JobRecord]) -> None:
        """Launch into other processes, any of which may be killed."""
        try:
            return self._launch(sweep, records)
        except Exception as error:
            reason = _death(error)
        if sweep.directory.stop_requested:
            return
        # joblib ends all its workers as soon as one of them dies; a cluster's jobs are independent.
        if "joblib" in str(self.config.hydra.launcher.get("_target_")):
            self._relaunch(sweep, records)
        else:
            self._wait_for_rest(sweep, records, reason)

    def _relaunch(self, sweep: Sweep, records: Sequence[JobRecord]) -> None:
        """Rerun the jobs that were running when a worker died, one at a time, then launch the waiting ones."""
        unfinished = self._unfinished(sweep, records)
        for record in unfinished:
            if record.status == RUNNING:
                try:
                    self._launch(sweep, [record])
                except Exception as error:
                    _fail(sweep.directory, record, _death(error))
        waiting = [record for record in self._unfinished(sweep, unfinished) if record.status == WAITING]
        if waiting and len(waiting) < len(records) and not sweep.directory.stop_requested:
            self._launch_workers(sweep, waiting)
        else:
            for record in waiting:
                _fail(sweep.directory, record, "its worker process could not be started")

    def _wait_for_rest(self, sweep: Sweep, records: Sequence[JobRecord], reason: str) -> None:
        """After a cluster reports that a job failed, wait for the jobs that are still running or queued."""
        print(f"note: {one_line(reason)}; waiting for the remaining jobs", flush=True)
        last_alive = time.monotonic()
        while (unfinished := self._unfinished(sweep, records)) and not sweep.directory.stop_requested:
            for record in unfinished:
                if record.status != RUNNING:
                    continue
                if is_held(sweep.directory.run_dir(record) / LOCK):
                    last_alive = time.monotonic()
                elif time.monotonic() - last_alive > START_S:
                    _fail(sweep.directory, record, reason)
            if time.monotonic() - last_alive > QUEUE_S:
                return
            time.sleep(POLL_S)

    def _unfinished(self, sweep: Sweep, records: Sequence[JobRecord]) -> list[JobRecord]:
        """The current records of the jobs that are waiting or running."""
        names = {record.name for record in records}
        now = [record for record in sweep.directory.records() if record.name in names]
        return [record for record in now if record.status in (WAITING, RUNNING)]


def _death(error: Exception) -> str:
    return f"its process died: {type(error).__name__}: {error}"


def _fail(directory: SweepDir, record: JobRecord, reason: str) -> None:
    """Record a job as failed, unless it has finished."""
    record = directory.get(record.name) or record
    if record.status == FINISHED:
        return
    record.status, record.code, record.error = FAILED, record.code or 1, one_line(reason)
    directory.write(record)


def fail_before_start(sweep: Sweep, record: JobRecord, error: UserError) -> None:
    """Record a job as failed because its settings do not compose."""
    record.reset()
    record.status, record.code, record.error = FAILED, USER_ERROR, f"error: {error}"
    sweep.directory.write(record)
    if sweep.in_process:
        print(record.error, file=sys.stderr, flush=True)
