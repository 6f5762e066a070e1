"""A comparison from its configuration to its figures."""

import hashlib
import os
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm.config.build import build
from tinyllm.config.grammar import key_of
from tinyllm.data.loader import eval_tokens
from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.studies.compare import timing as clock
from tinyllm.studies.compare.arms import Asked
from tinyllm.studies.compare.budget import Budget
from tinyllm.studies.compare.composed_arms import (
    ComposedArm,
    compose_arms,
    give_horizon,
    match_arms,
    needs_gpu,
    reference_of,
    same_metric,
)
from tinyllm.studies.compare.measurements import MEASURED
from tinyllm.studies.compare.pipeline import RUNS, TIMING, TUNE, Comparison, arms_of, notes_of, values_of
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Run, Study
from tinyllm.studies.compare.run_ledger import slug
from tinyllm.studies.compare.run_pool import DeviceSlots, places
from tinyllm.studies.compare.statistics import differences
from tinyllm.studies.compare.tuning import Tuning
from tinyllm.studies.compare.tuning import asked as asked_for
from tinyllm.studies.compare.verdicts import verdicts
from tinyllm.utils.files import read_json, write_json
from tinyllm.utils.locks import try_lock
from tinyllm.utils.stop_signal import StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation

NO_MATTER = ("question", "reference", "seeds", "effect", "max_minutes", "probes", "parallel", "out", "study")
"""What a study can change and still be the same study."""
HORIZON = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
STUDY = "study.json"
STUDIES = (STUDY, "scaling.json")
UNFINISHED = {".lock", RUNS, TUNE, TIMING, "probes", MEASURED}
"""What lies in the directory of a study that has no report yet."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known before anything is written."""

    arms: list[ComposedArm]
    reference: ComposedArm
    budget: Budget
    amount: float
    """Of the budget, for one run."""
    evaluations: int | None
    """Of one run; None: as its configuration says."""
    tuning: Tuning | None
    where: DeviceSlots


def prepare(cfg: "DictConfig", invocation: "Invocation", asked: Asked, *, own: Sequence[str]) -> Prepared:
    """The arms composed and matched, and the budget; nothing is written but the cache of tokens.

    Raises:
        UserError: something does not fit.
    """
    budget: Budget = build(cfg.budget, path="budget", allow=invocation.allow)
    horizon = sorted(invocation.typed.intersection(HORIZON))
    if horizon and cfg.budget.amount is not None:
        hint = f"budget.amount={cfg.budget.amount:g} sets the horizon of every arm; leave one of the two out"
        raise UserError("two horizons", file=horizon[0], hint=hint)
    defaults = [f"trainer.sample_every={cfg.trainer.sample_every}"]
    arms = compose_arms(asked, own=own, defaults=defaults, config_dir=invocation.config_dir, allow=invocation.allow)
    reference = reference_of(arms, cfg.reference)
    matching = {"match": cfg.match, "match_by": cfg.match_by, "tolerance": cfg.tolerance}
    match_arms(arms, reference, **matching, allow=invocation.allow)
    tuning = asked_for(cfg.tune, cfg.tune_trials)
    for arm in arms:
        if tuning is not None:
            tuning.sweep_of(arm.cfg)
    evaluations = None if "trainer.eval_every" in invocation.typed else int(cfg.evaluations)
    amount = budget.given_by(reference.cost, steps=reference.own_horizon())
    if not budget.needs_speed:
        give_horizon(arms, budget, amount, evaluations=evaluations, config_dir=invocation.config_dir)
    return Prepared(
        arms=arms,
        reference=reference,
        budget=budget,
        amount=amount,
        evaluations=evaluations,
        tuning=tuning,
        where=places(cfg.parallel, per_run=cfg.strategy.get("nproc_per_node") or 1, on_gpu=needs_gpu(cfg)),
    )


def place(cfg: "DictConfig", asked: Asked) -> Path:
    """The study's directory: as asked for, else the same one for the same settings, whatever its arms' values."""
    if cfg.out is not None:
        return Path(cfg.out)
    shared = sorted(one for one in asked.shared if key_of(one) not in NO_MATTER)
    varied = dict.fromkeys(key_of(one) for arm in asked.arms for one in arm.settings)
    name = Path(cfg.study).resolve().parent.name if cfg.study else "-".join(varied)
    digest = hashlib.sha256("\n".join(shared).encode()).hexdigest()[:8]
    return Path("outputs") / "compare" / f"{slug(name)}_{digest}"


def check_place(directory: Path) -> None:
    """Refuse a directory that holds anything but a study: its report would replace files of other people.

    Raises:
        UserError: it is not empty and no study.
    """
    if not directory.is_dir():
        return  # it is made, or making it says what is in the way
    names = {one.name for one in directory.iterdir()}
    foreign = names - UNFINISHED
    if foreign and not any(is_study(directory / name) for name in STUDIES if name in names):
        hint = f"it holds {min(foreign)} and is no study; choose a new or empty directory"
        raise UserError("the directory is not empty", key="out", value=directory, hint=hint)


def is_study(file: Path) -> bool:
    """Whether a file is what a comparison or a scaling study leaves at its end."""
    try:
        return "runs" in read_json(file)
    except UserError:
        return False


@contextmanager
def taken_hold_of(directory: Path) -> Iterator[None]:
    """Make the study's directory and hold it.

    Raises:
        UserError: it holds something else, cannot be made, or another comparison works in it.
    """
    check_place(directory)
    try:
        held = try_lock(directory / ".lock")
    except OSError as error:
        hint = f"{error.strerror}; choose another place with out=<directory>"
        raise UserError("the study's directory cannot be made", key="out", value=directory, hint=hint) from error
    if held is None:
        hint = "wait for it, stop it, or choose another place with out=<directory>"
        raise UserError("another comparison works in there", key="out", value=directory, hint=hint)
    try:
        yield
    finally:
        os.close(held)


def conduct(
    cfg: "DictConfig",
    invocation: "Invocation",
    prepared: Prepared,
    directory: Path,
    stop: StopRequest,
    screen: Screen,
    probe: Callable[[Sequence[str]], dict[str, float]],
) -> Study:
    """Train what is missing and work out what the figures say; ``study.json`` holds it.

    Args:
        probe: gives the accuracy by synthetic task of what an arm's settings compose.

    Raises:
        Stopped: a signal came.
        UserError: an arm cannot be timed or tuned, the budget is too small, a run was changed by hand.
    """
    arms, reference = prepared.arms, prepared.reference
    comparison = Comparison(
        directory=directory,
        arms=arms,
        reference=reference,
        where=prepared.where,
        stop=stop,
        metric=same_metric(arms),
        flags=[] if invocation.config_dir is None else ["--config-dir", invocation.config_dir],
        config_dir=invocation.config_dir,
        allow=invocation.allow,
        screen=screen,
    )
    screen.say(f"study: {directory}")
    tell_arms(comparison, match=cfg.match)
    if prepared.budget.needs_speed:
        comparison.time_arms(prepared.amount)
        give_horizon(
            arms,
            prepared.budget,
            prepared.amount,
            evaluations=prepared.evaluations,
            config_dir=invocation.config_dir,
        )
        for arm in arms:
            screen.say(f"  {arm.name}: {arm.tokens_per_s or 0:,.0f} tokens/s, so {arm.max_steps} steps")
    if warning := evaluating(reference):
        screen.say(warning)
    tuning = prepared.tuning
    if tuning is not None:
        comparison.tune(tuning)
    number, note = cfg.seeds, "as many as were asked for"
    if cfg.seeds == "auto":
        number, note = comparison.decide_seeds(effect=cfg.effect, max_minutes=cfg.max_minutes)
        screen.say(note)
    seeds = [int(cfg.seed) + i for i in range(number)]
    comparison.train(arms, seeds)
    runs = comparison.runs(arms, seeds)
    found = differences(values_of(runs, arms), reference=reference.name, effect=cfg.effect)
    speeds = comparison.decode_speeds(runs)
    probes = {arm.name: probe(arm.overrides) for arm in arms} if cfg.probes else {}
    notes = notes_of(runs, arms, tuning)
    if prepared.budget.needs_speed:
        trained = {arm.name: arm.max_steps * arm.batch.tokens for arm in arms}
        notes += clock.uneven(runs, trained)
    study = Study(
        question=cfg.question or question_of(arms, comparison.metric),
        command=shlex.join(["python", "-m", "tinyllm.compare", *invocation.arguments]),
        metric=comparison.metric,
        match=cfg.match,
        match_by=sorted({key for arm in arms for key in arm.solved}),
        tolerance=cfg.tolerance,
        budget=prepared.budget.name,
        amount=prepared.amount,
        effect=cfg.effect,
        seeds=seeds,
        seeds_note=note,
        reference=reference.name,
        arms=arms_of(comparison, speeds, probes),
        runs=runs,
        differences=found,
        verdicts=verdicts(
            found,
            reference=reference.name,
            metric=comparison.metric,
            effect=cfg.effect,
            arms=[arm.name for arm in arms],
            level=level_of(runs, reference.name),
        ),
        notes=notes,
        provenance=provenance_of(directory, runs),
    )
    write_json(directory / STUDY, asdict(study))
    return study


def level_of(runs: Sequence[Run], arm: str) -> float | None:
    """The mean of an arm's figures; None: no run of it has finished."""
    values = [run.value for run in runs if run.arm == arm and run.value is not None]
    return statistics.fmean(values) if values else None


def tell_arms(comparison: Comparison, *, match: str) -> None:
    """Say what the arms are, what matching changed and how near it came."""
    width = max(len(arm.name) for arm in comparison.arms)
    for arm in comparison.arms:
        costs = arm.account
        changed = " ".join(f"{key}={value}" for key, value in arm.solved.items())
        matched = "" if arm.mismatch is None else f", {match} {arm.mismatch:+.2%}"
        reference = ", the reference" if arm is comparison.reference else matched
        steps = f", {arm.max_steps} steps" if arm.max_steps else ""  # by the clock they are known later
        comparison.say(
            f"  {arm.name:{width}}  {costs.parameters:,} parameters ({costs.active_parameters:,} active),"
            f" {costs.flops_per_token:,} FLOPs and {costs.kv_bytes_per_token:,} B of cache a token"
            f"{steps}{reference}{f'; {changed}' if changed else ''}"
        )


def evaluating(arm: ComposedArm) -> str | None:
    """A warning if evaluating a run of this arm takes long beside training it."""
    asked = arm.cfg.trainer
    return clock.long_evaluation(
        evaluations=-(-arm.max_steps // asked.eval_every) if asked.eval_every else 0,
        tokens=eval_tokens(arm.data.val, max_tokens=asked.eval_tokens),
        trained=arm.max_steps * arm.batch.tokens,
    )


def question_of(arms: Sequence[ComposedArm], metric: str) -> str:
    """The question that nobody put into words."""
    names = [arm.name for arm in arms]
    return f"Which of {', '.join(names[:-1])} and {names[-1]} has the lowest {metric}?"


def provenance_of(directory: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """What made the runs; a fact that differs between them is given with all its values."""
    found: dict[str, list[Any]] = {}
    for run in runs:
        if not run.records:
            continue
        facts = read_run_json(directory / run.path)
        info = facts["info"]
        shown = {name: facts.get(name) for name in ("versions", "machine", "instructions", "threads", "commit")}
        shown |= {"code": facts.get("code"), "data": facts["facts"].get("data")}
        shown |= {name: info.get(name) for name in ("device", "precision", "train_tokens", "val_tokens", "dataset")}
        for name, value in shown.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
