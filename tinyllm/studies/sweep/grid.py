"""A sweep over a grid: every combination of the values on the command line is a job."""

from collections.abc import Iterable, Mapping

from tinyllm.config.cli.arguments import sweep_overrides
from tinyllm.errors import UserError
from tinyllm.studies.sweep.gpu_slots import slots_for
from tinyllm.studies.sweep.job import expand
from tinyllm.studies.sweep.job_record import FINISHED
from tinyllm.studies.sweep.launcher import JobLauncher, fail_before_start


def run_grid(launcher: JobLauncher, arguments: Iterable[str], *, batch: int | None, params: Mapping[str, str]) -> None:
    """Run every combination. A failing job does not stop the others.

    Args:
        arguments: the settings of the command line, several values for some keys.
        batch: number of jobs given to Hydra's launcher at once; None: all.
        params: default settings from the sweeper's yaml file.

    Raises:
        UserError: no job can run, or the directory holds different jobs.
    """
    if batch is not None and batch < 1:
        raise UserError("value out of range", key="hydra.sweeper.max_batch_size", value=batch, hint="at least 1")
    jobs = expand(sweep_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments]))
    directory = launcher.sweep_dir()
    refused: dict[int, UserError] = {}
    slots = None
    for index, job in enumerate(jobs):
        record = directory.find(job)
        if record and record.status == FINISHED:
            continue  # it needs no GPUs, and its settings need not compose any more
        try:
            slots = slots_for(launcher.compose(job), launcher.flags) or slots
        except UserError as error:
            refused[index] = error
    if len(refused) == len(jobs):  # a mistake in what all jobs share: nothing is created
        raise refused[0]
    sweep = launcher.sweep(directory, slots=slots)
    with sweep.running():
        unfinished = sweep.add(jobs)
        sweep.report_total(len(jobs))
        for index, reason in refused.items():
            record = directory.find(jobs[index])
            assert record is not None
            fail_before_start(sweep, record, reason)
            sweep.refresh()
        failed = {jobs[index].identity for index in refused}
        runnable = [record for record in unfinished if record.job.identity not in failed]
        size = batch or len(runnable) or 1
        for start in range(0, len(runnable), size):
            launcher.run(sweep, runnable[start : start + size], slots=slots)
