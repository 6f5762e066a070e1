"""A search for good settings: optuna proposes each job from the results of the earlier ones."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from tinyllm.config.cli.arguments import sweep_overrides
from tinyllm.config.targets import resolve_target
from tinyllm.errors import UserError, one_line
from tinyllm.runs.metric_kinds import metric_kind
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.gpu_slots import slots_for
from tinyllm.studies.sweep.job import Job, without_start_keys
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, INTERRUPTED, LOSS, JobRecord
from tinyllm.studies.sweep.launcher import JobLauncher, fail_before_start
from tinyllm.studies.sweep.search_space import space_of
from tinyllm.studies.sweep.sweep_runner import Sweep
from tinyllm.training.objectives.base import Objective

STUDY = "search.db"
SAMPLERS = {"tpe": TPESampler, "random": RandomSampler}
DIRECTIONS = ("minimize", "maximize")


def run_search(
    launcher: JobLauncher,
    arguments: Iterable[str],
    *,
    params: Mapping[str, str],
    n_trials: int,
    n_jobs: int,
    sampler: str,
    seed: int,
    direction: Literal["minimize", "maximize"] | None,
    metric: str | None,
) -> None:
    """Run jobs until the directory holds ``n_trials``, those of earlier starts included.

    Args:
        arguments: the settings of the command line; in Hydra's grammar they include the search space.
        params: default settings from the sweeper's yaml file.
        n_jobs: number of jobs proposed and launched at once.
        sampler: tpe or random.
        seed: determines the next proposal, together with the results so far.
        direction: minimize or maximize the best value of the metric in a job; None: as is known of the metric.
        metric: logged by the jobs; None: what their objective selects the best checkpoint by.

    Raises:
        UserError: an invalid search, or the directory holds a different one.
    """
    _check_options(n_trials=n_trials, n_jobs=n_jobs, sampler=sampler, seed=seed, direction=direction)
    overrides = sweep_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments])
    space = space_of(overrides)
    cfg = launcher.compose(job_of(overrides, {key: _example(drawn) for key, drawn in space.items()}))
    if not cfg.trainer.eval_every:
        hint = "set it to at least 1; the last step is always evaluated as well"
        raise UserError("a search needs evaluations", key="trainer.eval_every", value=0, hint=hint)
    metric, direction = _goal(cfg, metric, direction)
    slots = slots_for(cfg, launcher.flags)
    directory = launcher.sweep_dir()
    sweep = launcher.sweep(directory, slots=slots, maximize=direction == "maximize", metric=metric)
    with sweep.running():
        study = open_study(directory.path / STUDY, direction=direction)
        check_study(study, directory, overrides, space, direction)
        # deepcopy=False: the trials are only read, and copying all of them for each proposal takes quadratic time.
        proposed = [trial.params for trial in study.get_trials(deepcopy=False)]
        sweep.add([job_of(overrides, params) for params in proposed if params.keys() == space.keys()])
        sweep.report_total(n_trials)
        while not directory.stop_requested:
            jobs = report_results(study, sweep, overrides)[:n_jobs]
            while len(jobs) < n_jobs and (number := len(study.get_trials(deepcopy=False))) < n_trials:
                study.sampler = sampler_for(sampler, seed=seed, trial=number)
                jobs.append(job_of(overrides, study.ask(space).params))
            if not jobs:
                break
            launcher.run(sweep, _composable(launcher, sweep, jobs), slots=slots)
            report_results(study, sweep, overrides, launched=not directory.stop_requested)


def _goal(
    cfg: Any, metric: str | None, direction: Literal["minimize", "maximize"] | None
) -> tuple[str, Literal["minimize", "maximize"]]:
    """The metric of a search and whether to minimize or maximize it.

    Raises:
        UserError: nothing is known about the metric.
    """
    objective = resolve_target(cfg.objective, path="objective")
    if metric is None and not issubclass(objective, Objective):
        metric = LOSS
    name: str = metric or objective.selects
    if direction is not None:
        return name, direction
    kind = metric_kind(name)
    if kind is None:
        hint = "set hydra.sweeper.direction=minimize or maximize"
        raise UserError("nothing is known about the metric", key="hydra.sweeper.metric", value=name, hint=hint)
    return name, "minimize" if kind.lower_is_better else "maximize"


def report_results(study: Study, sweep: Sweep, overrides: Sequence[Override], *, launched: bool = False) -> list[Job]:
    """Tell the study the results of its running trials; returns the jobs that are still to be run.

    Args:
        launched: the jobs were just launched; one without a result has failed.
    """
    keys = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    unfinished = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A trial without all keys was being proposed when the sweep was killed.
        job = job_of(overrides, trial.params) if trial.params.keys() == keys else None
        record = sweep.directory.find(job) if job else None
        if record is not None and _has_value(record):
            study.tell(trial.number, record.val_loss)
        elif job is None or launched or (record is not None and record.status in (FINISHED, FAILED)):
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            unfinished.append(job)
    return unfinished


def _has_value(record: JobRecord) -> bool:
    """Whether a job has ended with a finite loss; ``trainer.max_minutes`` counts as an end."""
    ended = record.status == FINISHED or (record.status == INTERRUPTED and record.code == 0)
    return ended and record.val_loss is not None and math.isfinite(record.val_loss)


def _composable(launcher: JobLauncher, sweep: Sweep, jobs: list[Job]) -> list[JobRecord]:
    """The records of the jobs whose settings compose; the others are recorded as failed."""
    composable = []
    for record in sweep.add(jobs):
        try:
            launcher.compose(record.job)
            composable.append(record)
        except UserError as error:
            fail_before_start(sweep, record, error)
    sweep.refresh()
    return composable


def job_of(overrides: Iterable[Override], params: Mapping[str, Any]) -> Job:
    """The job with the values of a trial; all other settings as on the command line."""
    settings, swept = [], []
    for override in overrides:
        key = override.get_key_element()
        settings.append(f"{key}={params[key] if key in params else override.get_value_element_as_str()}")
        if key in params:
            swept.append(settings[-1])
    return Job(overrides=settings, swept=swept)


def open_study(file: Path, *, direction: Literal["minimize", "maximize"]) -> Study:
    """Open the study in a file, or create it. Only the main process of a sweep uses it.

    Raises:
        UserError: the file holds no study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(file))))
        return optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)
    except (SQLAlchemyError, RuntimeError) as error:
        hint = f"{one_line(str(error))[:120]}; move the file away to start over; finished jobs are kept"
        raise UserError("the study cannot be read", file=file, hint=hint) from error


def sampler_for(name: str, *, seed: int, trial: int) -> BaseSampler:
    """The sampler of one trial. Each trial has its own seed, so an interrupted search continues identically."""
    return SAMPLERS[name](seed=(seed * 1_000_003 + trial) % 2**32)


def _example(drawn: BaseDistribution) -> Any:
    """A value of a distribution, for a configuration to check."""
    choices = getattr(drawn, "choices", None)
    return choices[0] if choices else getattr(drawn, "low", None)


def _check_options(*, n_trials: Any, n_jobs: Any, sampler: Any, seed: Any, direction: Any) -> None:
    """Check the sweeper's own options, whose types Hydra does not check.

    Raises:
        UserError: a value that is not allowed.
    """
    for name, number, least in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
        if type(number) is not int or number < least:
            hint = f"a whole number, at least {least}"
            raise UserError("value not allowed", key=f"hydra.sweeper.{name}", value=number, hint=hint)
    for name, word, allowed in (("sampler", sampler, SAMPLERS), ("direction", direction or "minimize", DIRECTIONS)):
        if word not in allowed:
            hint = f"one of {', '.join(allowed)}"
            raise UserError("value not allowed", key=f"hydra.sweeper.{name}", value=word, hint=hint)


def check_study(
    study: Study,
    directory: SweepDir,
    overrides: Iterable[Override],
    space: Mapping[str, BaseDistribution],
    direction: str,
) -> None:
    """Check that the study belongs to this search: same direction, search space and fixed settings.

    Raises:
        UserError: it belongs to a different search.
    """
    fixed = [
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in overrides
        if not override.is_sweep_override()
    ]
    search = {
        "direction": direction,
        "settings": sorted(without_start_keys(fixed)),
        "space": {key: repr(drawn) for key, drawn in sorted(space.items())},
    }
    saved = study.user_attrs.get("search")
    if saved is None:
        study.set_user_attr("search", search)
    elif saved != search:
        name = next(name for name in search if saved.get(name) != search[name])
        hint = (
            f"its {name}: {one_line(json.dumps(saved.get(name)))};"
            " give the same command, or choose a different directory"
        )
        what = "the directory holds a different search"
        raise UserError(what, key="hydra.sweep.dir", value=directory.path, hint=hint)
    # Its values become settings of jobs: an untrusted study could inject any.
    for trial in study.get_trials(deepcopy=False):
        foreign = [key for key, drawn in trial.distributions.items() if drawn != space.get(key)]
        if foreign:
            hint = f"trial {trial.number} drew {foreign[0]} from a different distribution; choose a different directory"
            raise UserError(
                "the directory holds a different search", key="hydra.sweep.dir", value=directory.path, hint=hint
            )
