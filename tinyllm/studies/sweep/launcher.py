"""From a list of jobs to runs: composing each, and handing them to Hydra's launcher."""

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

from tinyllm.config.cli.arguments import check_settings
from tinyllm.config.grammar import key_of, quote
from tinyllm.config.hydra_errors import explained
from tinyllm.errors import UserError, one_line
from tinyllm.runs.layout import LOCK
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.gpu_slots import Slots
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, RUNNING, WAITING, Job, Record
from tinyllm.studies.sweep.sweep_runner import LOOK_EVERY_S, Sweep
from tinyllm.utils.locks import is_held

IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
USER_ERROR = 2
START_TAKES_S = 60.0
"""Seconds after which a job that runs, by its record, and holds no run directory is taken for dead."""
QUEUE_TAKES_S = 600.0
"""Seconds without a running job after which those that wait are taken for lost."""


@dataclass(kw_only=True)
class Launching:
    """What Hydra gives a sweeper."""

    config: DictConfig
    context: HydraContext
    task: TaskFunction

    @property
    def flags(self) -> list[str]:
        """What stood before the settings on the command line and belongs to every job."""
        sources = self.config.hydra.runtime.config_sources
        added = [str(source.path) for source in sources if source.provider == "command-line"]
        return [word for path in added for word in ("--config-dir", path)]

    def place(self) -> SweepDir:
        """The sweep's directory, in the configuration of every job; one that nobody named is like no other."""
        node = self.config.hydra
        path = str(node.sweep.dir)
        if not path:
            hint = "give a directory, or leave it out"
            raise UserError("no directory is given", key="hydra.sweep.dir", value=path, hint=hint)
        if "hydra.sweep.dir" not in map(key_of, node.overrides.hydra):
            path = f"{path}_{secrets.token_hex(2)}"
            with read_write(node), open_dict(node):
                node.sweep.dir = path
                node.overrides.hydra.append(f"hydra.sweep.dir={quote(path)}")
        return SweepDir(Path(path))

    def compose(self, job: Job) -> DictConfig:
        """The configuration of a job.

        Raises:
            UserError: it does not compose.
        """
        check_settings(job.overrides, directories=self.flags[1::2])
        try:
            return self.context.config_loader.load_sweep_config(self.config, list(job.overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(error, list(job.overrides)) from error

    def sweep(self, directory: SweepDir, *, slots: Slots | None, maximize: bool = False) -> Sweep:
        """The sweep of this command, in which nothing has happened yet."""
        in_process = slots is None and self.config.hydra.launcher.get("_target_") == IN_PROCESS
        return Sweep(directory, in_process=in_process, maximize=maximize)

    def run(self, sweep: Sweep, records: Sequence[Record], *, slots: Slots | None) -> None:
        """Run jobs; what becomes of them stands in their records.

        Args:
            slots: GPUs to run several jobs at once, each as a program of its own; None: Hydra's launcher runs them.
        """
        if not records or sweep.directory.stopping:
            return
        if slots is not None:
            with sweep.watching():
                slots.run(sweep.directory, records)
        elif sweep.in_process:
            self._launch(sweep, records)
        else:
            with sweep.watching():
                self._launch_apart(sweep, records)

    def _launch(self, sweep: Sweep, records: Sequence[Record]) -> None:
        """One call of the launcher. A job that ended by an error outside of its run is recorded as failed."""
        launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=self.context, task_function=self.task
        )
        jobs = [[*record.overrides, f"hydra.job.name={quote(record.name)}"] for record in records]
        returns = launcher.launch(jobs, initial_job_idx=records[0].number)
        for record, returned in zip(records, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED:
                error = returned._return_value
                _fail(sweep.directory, record, f"{type(error).__name__}: {error}")

    def _launch_apart(self, sweep: Sweep, records: Sequence[Record]) -> None:
        """Launch into other processes, one of which may die without a word."""
        try:
            return self._launch(sweep, records)
        except Exception as error:
            reason = f"its process died: {type(error).__name__}: {error}"
        if sweep.directory.stopping:
            return
        if self._one_breaks_all:
            self._again_alone(sweep, records)
        else:
            self._wait_for_others(sweep, records, reason)

    @property
    def _one_breaks_all(self) -> bool:
        """Whether the launcher's processes end with the first of them that dies."""
        return "joblib" in str(self.config.hydra.launcher.get("_target_"))

    def _again_alone(self, sweep: Sweep, records: Sequence[Record]) -> None:
        """Jobs that ran when a process died are run once more, each by itself, then those that had to wait."""
        left = self._current(sweep, records)
        for record in [one for one in left if one.status == RUNNING]:
            try:
                self._launch(sweep, [record])
            except Exception as error:
                _fail(sweep.directory, record, f"its process died: {type(error).__name__}: {error}")
        waiting = [record for record in self._current(sweep, left) if record.status == WAITING]
        if waiting and len(waiting) < len(records) and not sweep.directory.stopping:
            self._launch_apart(sweep, waiting)
        else:
            for record in waiting:
                _fail(sweep.directory, record, "the processes for it could not be started")

    def _wait_for_others(self, sweep: Sweep, records: Sequence[Record], reason: str) -> None:
        """Let jobs end that a cluster runs or has in its queue, though it has reported one that did not."""
        print(f"note: {one_line(reason)}; waiting for the others", flush=True)
        quiet_since = time.monotonic()
        while (left := self._current(sweep, records)) and not sweep.directory.stopping:
            for record in [one for one in left if one.status == RUNNING]:
                if is_held(sweep.directory.run_dir(record) / LOCK):
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > START_TAKES_S:
                    _fail(sweep.directory, record, reason)
            if time.monotonic() - quiet_since > QUEUE_TAKES_S:
                return
            time.sleep(LOOK_EVERY_S)

    def _current(self, sweep: Sweep, records: Sequence[Record]) -> list[Record]:
        """Those of the jobs that have not ended, as they stand now."""
        names = {record.name for record in records}
        now = [record for record in sweep.directory.all() if record.name in names]
        return [record for record in now if record.status in (WAITING, RUNNING)]


def _fail(directory: SweepDir, record: Record, reason: str) -> None:
    now = directory.named(record.name) or record
    if now.status == FINISHED:
        return
    now.status, now.code, now.error = FAILED, now.code or 1, one_line(reason)
    directory.write(now)


def fail_at_once(sweep: Sweep, record: Record, error: UserError) -> None:
    """Record that a job cannot even be composed."""
    record.reset()
    record.status, record.code, record.error = FAILED, USER_ERROR, f"error: {error}"
    sweep.directory.write(record)
    if sweep.in_process:
        print(record.error, file=sys.stderr, flush=True)
