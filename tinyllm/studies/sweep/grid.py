"""Every combination of the values on the command line, as jobs."""

import itertools
from collections.abc import Iterable, Mapping

from hydra.core.override_parser.types import Override

from tinyllm.config.cli.arguments import sweep_overrides
from tinyllm.errors import UserError
from tinyllm.studies.sweep.gpu_slots import slots_for
from tinyllm.studies.sweep.job_record import FINISHED, Job
from tinyllm.studies.sweep.launcher import Launching, fail_at_once


def sweep(launching: Launching, arguments: Iterable[str], *, batch: int | None, params: Mapping[str, str]) -> None:
    """Run every combination; a job that fails does not keep the others from running.

    Args:
        arguments: the settings of the command line, with several values for some keys.
        batch: jobs handed to the launcher at once; None: all.
        params: more settings, from a file; the command line's win.

    Raises:
        UserError: nothing can be run, or the directory holds other jobs.
    """
    if batch is not None and batch < 1:
        raise UserError("value out of range", key="hydra.sweeper.max_batch_size", value=batch, hint="at least 1")
    jobs = expand(sweep_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments]))
    directory = launching.place()
    problems: dict[int, UserError] = {}
    slots = None
    for index, job in enumerate(jobs):
        known = directory.find(job)
        if known and known.status == FINISHED:
            continue
        try:
            slots = slots_for(launching.compose(job), launching.flags) or slots
        except UserError as error:
            problems[index] = error
    if len(problems) == len(jobs):
        raise problems[0]
    running = launching.sweep(directory, slots=slots)
    with running.running():
        todo = running.add(jobs)
        running.tell_jobs(len(jobs))
        for index, problem in problems.items():
            record = directory.find(jobs[index])
            assert record is not None
            fail_at_once(running, record, problem)
            running.look()
        impossible = {frozenset(jobs[index].overrides) for index in problems}
        todo = [record for record in todo if frozenset(record.overrides) not in impossible]
        for start in range(0, len(todo), batch or len(todo) or 1):
            launching.run(running, todo[start : start + (batch or len(todo))], slots=slots)


def expand(overrides: Iterable[Override]) -> list[Job]:
    """The jobs of a grid, the last key varying fastest.

    Raises:
        UserError: a range without single values.
    """
    axes: list[list[str]] = []
    swept: list[bool] = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            typed = str(override.input_line).partition("=")[2]
            hint = "name the values, or search with hydra/sweeper=search"
            raise UserError("a range without single values", key=key, value=typed, hint=hint)
        several = override.is_sweep_override()
        values = override.sweep_string_iterator() if several else [override.get_value_element_as_str()]
        axes.append([f"{key}={value}" for value in values])
        swept.append(several)
    jobs = {}
    for combination in itertools.product(*axes):
        varied = [setting for setting, several in zip(combination, swept, strict=True) if several]
        jobs[combination] = Job(overrides=combination, swept=varied)
    return list(jobs.values())
