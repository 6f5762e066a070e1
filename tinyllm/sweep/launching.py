"""From a list of jobs to runs: composing each, and handing them to Hydra's launcher."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from tinyllm.config.errors import explained
from tinyllm.config.literal import quote
from tinyllm.config.overrides import key_of
from tinyllm.errors import UserError, one_line
from tinyllm.sweep.directory import SweepDir
from tinyllm.sweep.record import FAILED, FINISHED, RUNNING, WAITING, Job, Record
from tinyllm.sweep.slots import Slots
from tinyllm.sweep.sweep import Sweep

IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
USER_ERROR = 2


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
        returns = launcher.launch([record.overrides for record in records], initial_job_idx=records[0].number)
        for record, returned in zip(records, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED:
                error = returned._return_value
                _fail(sweep.directory, record, f"{type(error).__name__}: {error}")

    def _launch_apart(self, sweep: Sweep, records: Sequence[Record]) -> None:
        """Launch into other processes. One that dies may take others along, so those try again, each alone."""
        left = list(records)
        while left and not sweep.directory.stopping:
            try:
                return self._launch(sweep, left)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            if sweep.directory.stopping:
                return
            left = self._current(sweep, left)
            broken = [record for record in left if record.status == RUNNING]
            if not broken:
                for record in left:
                    _fail(sweep.directory, record, reason)
                return
            for record in broken:
                try:
                    self._launch(sweep, [record])
                except Exception as error:
                    _fail(sweep.directory, record, f"its process died: {type(error).__name__}: {error}")
            left = [record for record in self._current(sweep, left) if record.status == WAITING]

    def _current(self, sweep: Sweep, records: Sequence[Record]) -> list[Record]:
        """Those of the jobs that have not ended, as they stand now."""
        names = {record.name for record in records}
        now = [record for record in sweep.directory.all() if record.name in names]
        return [record for record in now if record.status in (WAITING, RUNNING)]


def _fail(directory: SweepDir, record: Record, reason: str) -> None:
    now = directory.find(record.overrides) or record
    if now.status == FINISHED:
        return
    now.status, now.code, now.error = FAILED, now.code or 1, one_line(reason)
    directory.write(now)


def fail_at_once(directory: SweepDir, record: Record, error: UserError) -> None:
    """Record that a job cannot even be composed."""
    record.reset()
    record.status, record.code, record.error = FAILED, USER_ERROR, f"error: {error}"
    directory.write(record)
