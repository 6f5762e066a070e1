"""A search for good settings: optuna chooses them by what earlier jobs have shown."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import Override

from tinyllm.config.cli.arguments import sweep_overrides
from tinyllm.errors import UserError, one_line
from tinyllm.studies.sweep.directory import SweepDir, fixed_identity
from tinyllm.studies.sweep.gpu_slots import slots_for
from tinyllm.studies.sweep.job_record import FAILED, FINISHED, INTERRUPTED, Job, Record
from tinyllm.studies.sweep.launcher import Launching, fail_at_once
from tinyllm.studies.sweep.search_space import space_of
from tinyllm.studies.sweep.sweep_runner import Sweep

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study

STUDY = "search.db"
SAMPLERS = ("tpe", "random")
DIRECTIONS = ("minimize", "maximize")


def search(
    launching: Launching,
    arguments: Iterable[str],
    *,
    params: Mapping[str, str],
    n_trials: int,
    n_jobs: int,
    sampler: str,
    seed: int,
    direction: Literal["minimize", "maximize"],
) -> None:
    """Run jobs until there are ``n_trials``, those of earlier starts in the same directory included.

    Args:
        arguments: the settings of the command line; what may be chosen from is written in Hydra's grammar.
        params: more settings, from a file; the command line's win.
        n_jobs: jobs chosen and handed to the launcher at once.
        sampler: tpe or random.
        seed: with the history of the search it determines what is chosen next.
        direction: minimize or maximize the lowest validation loss of a job.

    Raises:
        UserError: nothing can be searched for, or the directory holds another search.
    """
    _check(n_trials=n_trials, n_jobs=n_jobs, sampler=sampler, seed=seed, direction=direction)
    if not _has_optuna():
        raise UserError("optuna is not installed", file="hydra/sweeper=search", hint="pip install 'tinyllm[sweep]'")
    overrides = sweep_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments])
    space = space_of(overrides)
    cfg = launching.compose(job_of(overrides, {key: _example(one) for key, one in space.items()}))
    if not cfg.trainer.eval_every:
        hint = "at least 1; the last step is then always evaluated"
        raise UserError("a search needs evaluations", key="trainer.eval_every", value=0, hint=hint)
    slots = slots_for(cfg, launching.flags)
    directory = launching.place()
    running = launching.sweep(directory, slots=slots, maximize=direction == "maximize")
    with running.running():
        study = open_study(directory.path / STUDY, direction=direction)
        _check_same(study, directory, overrides, space, direction)
        there = [trial.params for trial in study.get_trials(deepcopy=False)]
        running.add([job_of(overrides, chosen) for chosen in there if chosen.keys() == space.keys()])
        running.tell_jobs(n_trials)
        while not directory.stopping:
            jobs = settle(study, running, overrides)[:n_jobs]
            while len(jobs) < n_jobs and (number := len(study.get_trials(deepcopy=False))) < n_trials:
                study.sampler = sampler_for(sampler, seed=seed, trial=number)
                jobs.append(job_of(overrides, study.ask(space).params))
            if not jobs:
                break
            launching.run(running, _possible(launching, running, jobs), slots=slots)
            settle(study, running, overrides, ended=not directory.stopping)


def settle(study: "Study", running: Sweep, overrides: Sequence[Override], *, ended: bool = False) -> list[Job]:
    """Tell the study what became of its jobs; returns those that have not ended.

    Args:
        ended: those that have not ended were given their chance.
    """
    from optuna.trial import TrialState

    left = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        keys = {one.get_key_element() for one in overrides if one.is_sweep_override()}
        job = job_of(overrides, trial.params) if trial.params.keys() == keys else None  # else killed while choosing
        record = running.directory.find(job) if job else None
        if record is not None and _has_value(record):
            study.tell(trial.number, record.val_loss)
        elif job is None or ended or (record is not None and record.status in (FINISHED, FAILED)):
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            left.append(job)
    return left


def _has_value(record: Record) -> bool:
    """Whether a job has come to its end, that of ``trainer.max_minutes`` included, with a loss that is a number."""
    ended = record.status == FINISHED or (record.status == INTERRUPTED and record.code == 0)
    return ended and record.val_loss is not None and math.isfinite(record.val_loss)


def _possible(launching: Launching, running: Sweep, jobs: list[Job]) -> list[Record]:
    """The records of the jobs that compose; the others have failed."""
    possible = []
    for record in running.add(jobs):
        try:
            launching.compose(Job(overrides=record.overrides, swept=record.swept))
            possible.append(record)
        except UserError as error:
            fail_at_once(running, record, error)
    running.look()
    return possible


def job_of(overrides: Iterable[Override], chosen: Mapping[str, Any]) -> Job:
    """The job with the chosen values, everything else as on the command line."""
    settings, swept = [], []
    for override in overrides:
        key = override.get_key_element()
        settings.append(f"{key}={chosen[key] if key in chosen else override.get_value_element_as_str()}")
        if key in chosen:
            swept.append(settings[-1])
    return Job(overrides=settings, swept=swept)


def open_study(file: Path, *, direction: Literal["minimize", "maximize"]) -> "Study":
    """The study in a file, which is made if it is not there. Only the sweep's main process uses it.

    Raises:
        UserError: the file is not one.
    """
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(file))))
        return optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)
    except (SQLAlchemyError, RuntimeError) as error:
        hint = f"{one_line(str(error))[:120]}; take the file away to begin anew, the jobs that finished stay"
        raise UserError("the study cannot be read", file=file, hint=hint) from error


def sampler_for(name: str, *, seed: int, trial: int) -> "BaseSampler":
    """The sampler of one trial. Each trial has its own seed, so a search that was stopped goes on as it would have."""
    from optuna.samplers import RandomSampler, TPESampler

    own = (seed * 1_000_003 + trial) % 2**32
    return {"tpe": TPESampler, "random": RandomSampler}[name](seed=own)


def _example(distribution: "BaseDistribution") -> Any:
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else getattr(distribution, "low", None)


def _check(*, n_trials: Any, n_jobs: Any, sampler: Any, seed: Any, direction: Any) -> None:
    """Refuse settings of the search that make no sense."""
    for name, number, least in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
        if type(number) is not int or number < least:
            hint = f"a whole number, at least {least}"
            raise UserError("value not allowed", key=f"hydra.sweeper.{name}", value=number, hint=hint)
    for name, word, words in (("sampler", sampler, SAMPLERS), ("direction", direction, DIRECTIONS)):
        if word not in words:
            hint = f"one of {', '.join(words)}"
            raise UserError("value not allowed", key=f"hydra.sweeper.{name}", value=word, hint=hint)


def _has_optuna() -> bool:
    try:
        import optuna  # noqa: F401
    except ImportError:
        return False
    return True


def _check_same(
    study: "Study",
    directory: SweepDir,
    overrides: Iterable[Override],
    space: Mapping[str, "BaseDistribution"],
    direction: str,
) -> None:
    """Refuse to go on with a search in another space, or with other settings besides.

    Raises:
        UserError: it was started otherwise.
    """
    fixed = [
        f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in overrides if not one.is_sweep_override()
    ]
    asked = {
        "direction": direction,
        "settings": sorted(fixed_identity(fixed)),
        "space": {key: repr(one) for key, one in sorted(space.items())},
    }
    there = study.user_attrs.get("search")
    if there is None:
        study.set_user_attr("search", asked)
    elif there != asked:
        different = next(name for name in asked if there.get(name) != asked[name])
        was = one_line(json.dumps(there.get(different)))
        hint = f"its {different}: {was}; give the same command, or choose another directory"
        raise UserError("another search is in there", key="hydra.sweep.dir", value=directory.path, hint=hint)
    for trial in study.get_trials(deepcopy=False):  # what was tried becomes settings of jobs again
        strange = [key for key, one in trial.distributions.items() if one != space.get(key)]
        if strange:
            hint = f"trial {trial.number} chose {strange[0]} from something else; choose another directory"
            raise UserError("another search is in there", key="hydra.sweep.dir", value=directory.path, hint=hint)
