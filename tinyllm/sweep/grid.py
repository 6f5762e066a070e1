"""Every combination of the values on the command line, as jobs."""

import itertools
from collections.abc import Iterable, Mapping

from hydra.core.override_parser.types import Override

from tinyllm.config.errors import explain
from tinyllm.config.grammar import parse_settings
from tinyllm.errors import UserError
from tinyllm.sweep.launching import Launching, fail_at_once
from tinyllm.sweep.record import FINISHED, Job
from tinyllm.sweep.slots import slots_for

OWN_PLACE = {
    "run.dir": "each job has its own directory below hydra.sweep.dir; leave it out",
    "run.name": "each job's directory is named by its number and what varies; leave it out",
    "resume": "start the same command again with hydra.sweep.dir=<the sweep's directory>",
}
"""Keys that the sweep sets for each job."""


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
    jobs = expand(parse([*(f"{key}={value}" for key, value in params.items()), *arguments]))
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


def parse(arguments: Iterable[str]) -> list[Override]:
    """The settings as Hydra reads them, the last one of each key.

    Raises:
        UserError: a key that the sweep itself sets.
    """
    arguments = list(arguments)
    with explain(arguments):
        parsed = parse_settings(arguments)
    for override in parsed:
        hint = OWN_PLACE.get(override.key_or_group)
        if hint:
            typed = str(override.input_line).partition("=")[2]
            raise UserError("a multirun has no use for it", key=override.key_or_group, value=typed, hint=hint)
    return list({override.get_key_element(): override for override in parsed}.values())


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
