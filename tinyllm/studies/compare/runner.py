"""Runs a whole comparison: configuration in, :class:`Study` out."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.config.grammar import key_of
from tinyllm.data.loader import eval_tokens
from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.metric_kinds import MetricKind
from tinyllm.studies.compare import timing
from tinyllm.studies.compare.arms import OWN_KEYS, ArmSet
from tinyllm.studies.compare.budget import Budget
from tinyllm.studies.compare.composed_arms import (
    ComposedArm,
    compose_arms,
    give_horizon,
    match_arms,
    needs_gpu,
    reference_of,
    without_keys,
)
from tinyllm.studies.compare.evaluations import SharedEvaluation
from tinyllm.studies.compare.measurements import MEASURED
from tinyllm.studies.compare.metrics import check_same_data, metric_of
from tinyllm.studies.compare.pipeline import RUNS, TIMING, TUNE, StudyRuns, arms_of, notes_of, values_of
from tinyllm.studies.compare.plan import PLAN, StudyPlan, make_plan
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Run, Study
from tinyllm.studies.compare.run_ledger import default_study_dir, slug
from tinyllm.studies.compare.run_pool import Environment, device_slots
from tinyllm.studies.compare.statistics import differences
from tinyllm.studies.compare.tuning import Tuning, parse_tuning
from tinyllm.studies.compare.validation import METRIC, SharedValidation
from tinyllm.studies.compare.verdicts import verdicts
from tinyllm.studies.probes.trials import probe_accuracies
from tinyllm.utils.files import read_json, write_json
from tinyllm.utils.locks import try_lock
from tinyllm.utils.stop_signal import StopRequest

SAME_STUDY = (
    "question",
    "reference",
    "seeds",
    "metric",
    "direction",
    "effect",
    "max_minutes",
    "probes",
    "parallel",
    "out",
    "study",
    "dry_run",
)
"""Keys that may change without making it a different study, so they do not enter the name of its directory."""
HORIZON = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
STUDY = "study.json"
STUDIES = (STUDY, "scaling.json", "pipeline.json")
UNFINISHED = {".lock", PLAN, RUNS, TUNE, TIMING, "probes", MEASURED, "stages", "measures", "samples"}
"""Contents of a study directory that has no report yet."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A comparison that is checked and ready to run."""

    arms: list[ComposedArm]
    reference: ComposedArm
    budget: Budget
    amount: float
    """The budget of one run."""
    evaluations: int | None
    """Evaluations per run; None: as configured."""
    tuning: Tuning | None
    slots: list[Environment]
    metric: MetricKind
    effect: float
    """The smallest difference worth detecting."""
    validation: SharedValidation | SharedEvaluation | None
    """The text or the problems that all arms are compared on; None: their own validation."""


def prepare(cfg: DictConfig, invocation: Invocation, arm_set: ArmSet) -> Prepared:
    """Compose and match the arms, and compute the budget. Writes nothing but the token cache.

    Raises:
        UserError: an invalid setting, or an arm that cannot be composed or matched.
    """
    budget: Budget = build(cfg.budget, path="budget", allow=invocation.allow)
    horizon = sorted(invocation.typed.intersection(HORIZON))
    if horizon and cfg.budget.amount is not None:
        hint = f"budget.amount={cfg.budget.amount:g} sets the horizon of every arm; leave one of the two out"
        raise UserError("the length of the runs is set twice", file=horizon[0], hint=hint)
    # A comparison prints no samples unless asked to; training's own default would generate text in every run.
    defaults = [f"trainer.sample_every={cfg.trainer.sample_every}"]
    config_dir, allow = invocation.config_dir, invocation.allow
    arms = compose_arms(
        arm_set, own=OWN_KEYS, defaults=defaults, config_dir=config_dir, allow=allow, lines=not invocation.json
    )
    reference = reference_of(arms, cfg.reference)
    metric, evaluation = metric_of(arms, cfg.metric, direction=cfg.direction, validation=cfg.validation)
    validation: SharedValidation | SharedEvaluation | None = evaluation
    if evaluation is not None:
        evaluation.check(config_dir=config_dir)
    elif metric.name == METRIC:
        validation = text = SharedValidation.open(cfg.validation, config_dir=config_dir, allow=allow)
        text.check_unseen(arms, allow=allow)
    elif cfg.metric is None:
        check_same_data(arms)
    match_arms(arms, reference, match=cfg.match, match_by=cfg.match_by, tolerance=cfg.tolerance, allow=allow)
    tuning = parse_tuning(cfg.tune, cfg.tune_trials)
    if tuning is not None:
        for arm in arms:
            tuning.sweep_setting(arm.cfg)  # raises if the key cannot be tuned
    evaluations = None if "trainer.eval_every" in invocation.typed else int(cfg.evaluations)
    amount = budget.for_run(reference.cost, steps=reference.own_horizon())
    if not budget.needs_speed:
        give_horizon(arms, budget, amount, evaluations=evaluations, config_dir=config_dir)
    return Prepared(
        arms=arms,
        reference=reference,
        budget=budget,
        amount=amount,
        evaluations=evaluations,
        tuning=tuning,
        slots=device_slots(cfg.parallel, per_run=cfg.strategy.get("nproc_per_node") or 1, on_gpu=needs_gpu(cfg)),
        metric=metric,
        effect=metric.effect if cfg.effect is None else float(cfg.effect),
        validation=validation,
    )


def study_dir(cfg: DictConfig, arm_set: ArmSet) -> Path:
    """The study's directory: ``out``, else one that depends on the shared settings and the names of the varied keys.

    It does not depend on the varied values, so that an arm added later joins the same study.
    """
    if cfg.out is not None:
        return Path(cfg.out)
    shared = without_keys(arm_set.shared, SAME_STUDY)
    varied = dict.fromkeys(key_of(setting) for spec in arm_set.specs for setting in spec.settings)
    name = Path(cfg.study).resolve().parent.name if cfg.study else "-".join(varied)
    return default_study_dir("compare", slug(name), shared)


def check_study_dir(directory: Path) -> None:
    """Refuse a directory that holds anything but a study: the report would replace files of the user.

    Raises:
        UserError: the directory is not empty and holds no study.
    """
    if not directory.is_dir():
        return  # to be created, or creating it fails with the reason
    names = {entry.name for entry in directory.iterdir()}
    foreign = names - UNFINISHED
    if foreign and not any(is_study(directory / name) for name in STUDIES if name in names):
        hint = f"it holds {min(foreign)} and no study; choose a new or empty directory"
        raise UserError("the directory is not empty", key="out", value=directory, hint=hint)


def is_study(file: Path) -> bool:
    """Whether a file is the result of a comparison, a scaling study or a pipeline."""
    try:
        content = read_json(file)
    except UserError:
        return False
    return "runs" in content or "stages" in content


@contextmanager
def locked_study_dir(directory: Path) -> Iterator[None]:
    """Create the study's directory and hold its lock.

    Raises:
        UserError: the directory does not hold a study, cannot be created, or is locked by another comparison.
    """
    check_study_dir(directory)
    try:
        lock = try_lock(directory / ".lock")
    except OSError as error:
        hint = f"{error.strerror}; choose a different directory with out=<directory>"
        raise UserError("cannot create the study directory", key="out", value=directory, hint=hint) from error
    if lock is None:
        hint = "wait for it, stop it, or choose a different directory with out=<directory>"
        raise UserError("another process uses this directory", key="out", value=directory, hint=hint)
    try:
        yield
    finally:
        os.close(lock)


def conduct(
    cfg: DictConfig, invocation: Invocation, prepared: Prepared, directory: Path, stop: StopRequest, screen: Screen
) -> Study:
    """Train the missing runs, compute all figures and write ``study.json``.

    Raises:
        Stopped: a signal came.
        UserError: an arm cannot be timed or tuned, the budget is too small, or the files of a run have changed.
    """
    arms, reference, budget = prepared.arms, prepared.reference, prepared.budget
    metric, effect = prepared.metric, prepared.effect
    study_runs = StudyRuns(
        directory=directory,
        arms=arms,
        reference=reference,
        slots=prepared.slots,
        stop=stop,
        metric=prepared.metric.name,
        validation=prepared.validation,
        config_dir=invocation.config_dir,
        allow=invocation.allow,
        screen=screen,
    )
    screen.say(f"study: {directory}")
    describe_arms(arms, reference, match=cfg.match, screen=screen)
    first = [] if cfg.seeds == "auto" else seeds_of(cfg, cfg.seeds)
    write_json(directory / PLAN, asdict(study_plan(cfg, invocation, prepared, directory, first)))
    if budget.needs_speed:
        study_runs.time_arms(prepared.amount)
        evaluations, config_dir = prepared.evaluations, invocation.config_dir
        give_horizon(arms, budget, prepared.amount, evaluations=evaluations, config_dir=config_dir)
        for arm in arms:
            screen.say(f"  {arm.name}: {arm.tokens_per_s or 0:,.0f} tokens/s, so {arm.max_steps} steps")
    if warning := evaluation_warning(reference):
        screen.say(warning)
    if prepared.tuning is not None:
        study_runs.tune(prepared.tuning)
    number, note = cfg.seeds, "as many as requested"
    if cfg.seeds == "auto":
        plan = study_runs.decide_seeds(effect=effect, max_minutes=cfg.max_minutes)
        number, note = plan.seeds, plan.sentence
        screen.say(note)
    seeds = seeds_of(cfg, number)
    write_json(directory / PLAN, asdict(study_plan(cfg, invocation, prepared, directory, seeds)))
    study_runs.train(arms, seeds)
    runs = study_runs.results(arms, seeds)
    diffs = differences(values_of(runs, arms), reference=reference.name, effect=effect)
    speeds = study_runs.decode_speeds(runs)
    probes = {arm.name: probe_arm(arm, cfg, invocation, directory) for arm in arms} if cfg.probes else {}
    notes = notes_of(runs, arms, prepared.tuning)
    if isinstance(prepared.validation, SharedValidation):
        notes.insert(0, f"all arms are compared on the validation part of {prepared.validation.text}")
    elif prepared.validation is not None:
        notes.insert(0, f"all arms are evaluated with {prepared.validation.text}")
    if any(arm.generated_per_step for arm in arms):
        notes.append("budgets count the tokens that are generated for training, as many as there may be at most")
    if budget.needs_speed:
        notes += timing.uneven_notes(runs, {arm.name: arm.tokens for arm in arms})
    study = Study(
        question=cfg.question or default_question(arms, metric),
        command=command_of(invocation),
        metric=study_runs.metric,
        match=cfg.match,
        match_by=sorted({key for arm in arms for key in arm.solved}),
        tolerance=cfg.tolerance,
        budget=budget.name,
        amount=prepared.amount,
        effect=effect,
        seeds=seeds,
        seeds_note=note,
        reference=reference.name,
        arms=arms_of(arms, speeds, probes),
        runs=runs,
        differences=diffs,
        verdicts=verdicts(
            diffs,
            reference=reference.name,
            metric=study_runs.metric,
            effect=effect,
            arms=[arm.name for arm in arms],
            level=mean_value(runs, reference.name),
            lower_is_better=metric.lower_is_better,
        ),
        notes=notes,
        provenance=provenance_of(directory, runs),
        trial_metric=reference.objective.selects,
        trial_lower_is_better=reference.objective.lower_is_better,
        lower_is_better=metric.lower_is_better,
        evaluation=prepared.validation.text if isinstance(prepared.validation, SharedEvaluation) else "",
    )
    write_json(directory / STUDY, asdict(study))
    return study


def study_plan(
    cfg: DictConfig, invocation: Invocation, prepared: Prepared, directory: Path, seeds: Sequence[int]
) -> StudyPlan:
    """The plan of a prepared comparison.

    Args:
        seeds: empty: a pilot will show how many are needed.
    """
    metric = prepared.metric
    return make_plan(
        prepared.arms,
        seeds=seeds,
        trials=0 if prepared.tuning is None else prepared.tuning.trials,
        needs_speed=prepared.budget.needs_speed,
        question=cfg.question or default_question(prepared.arms, metric),
        command=command_of(invocation),
        directory=str(directory),
        metric=metric.name,
        match=cfg.match,
        reference=prepared.reference.name,
        budget=prepared.budget.name,
        amount=prepared.amount,
        parallel=len(prepared.slots),
    )


def seeds_of(cfg: DictConfig, number: int) -> list[int]:
    """The seeds of the runs of each arm."""
    return [int(cfg.seed) + i for i in range(number)]


def command_of(invocation: Invocation) -> str:
    """The command that continues the study."""
    arguments = [argument for argument in invocation.arguments if argument.partition("=")[0] != "dry_run"]
    return shlex.join(["python", "-m", "tinyllm.compare", *arguments])


def probe_arm(arm: ComposedArm, cfg: DictConfig, invocation: Invocation, directory: Path) -> dict[str, float]:
    """The arm's accuracy on synthetic tasks; results are kept in the study's directory."""
    out = str(directory / "probes")
    return probe_accuracies(arm.overrides, list(cfg.probes), out=out, config_dir=invocation.config_dir)


def mean_value(runs: Sequence[Run], arm: str) -> float | None:
    """The mean of an arm's metric; None if none of its runs has finished."""
    values = [run.value for run in runs if run.arm == arm and run.value is not None]
    return fmean(values) if values else None


def describe_arms(arms: Sequence[ComposedArm], reference: ComposedArm, *, match: str, screen: Screen) -> None:
    """Print the costs of each arm and what the matching changed."""
    width = max(len(arm.name) for arm in arms)
    for arm in arms:
        costs = arm.account
        changed = " ".join(f"{key}={value}" for key, value in arm.solved.items())
        matched = "" if arm.mismatch is None else f", {match} {arm.mismatch:+.2%}"
        steps = f", {arm.max_steps} steps" if arm.max_steps else ""  # with budget=minutes not known yet
        screen.say(
            f"  {arm.name:{width}}  {costs.parameters:,} parameters ({costs.active_parameters:,} active),"
            f" {costs.flops_per_token:,} FLOPs and {costs.kv_bytes_per_token:,} B of cache per token"
            f"{steps}{', the reference' if arm is reference else matched}{f'; {changed}' if changed else ''}"
        )


def evaluation_warning(arm: ComposedArm) -> str | None:
    """A warning if evaluating a run of this arm takes long compared with training it."""
    trainer = arm.cfg.trainer
    return timing.evaluation_warning(
        evaluations=-(-arm.max_steps // trainer.eval_every) if trainer.eval_every else 0,
        tokens=sum(eval_tokens(split, max_tokens=trainer.eval_tokens) for split in arm.data.splits("val").values()),
        trained=arm.tokens,
    )


def default_question(arms: Sequence[ComposedArm], metric: MetricKind) -> str:
    """The question of a study that does not state one."""
    names = [arm.name for arm in arms]
    best = "lowest" if metric.lower_is_better else "highest"
    return f"Which of {', '.join(names[:-1])} and {names[-1]} has the {best} {metric.name}?"


def provenance_of(directory: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Versions, machine, commit, code and data of the runs. A fact that differs is a list of its values."""
    by_name: dict[str, list[Any]] = {}
    for run in runs:
        if not run.records:
            continue
        facts = read_run_json(directory / run.path)
        info = facts["info"]
        shown = {name: facts.get(name) for name in ("versions", "machine", "instructions", "threads", "commit")}
        shown |= {"code": facts.get("code"), "data": facts["facts"].get("data")}
        shown |= {name: info.get(name) for name in ("device", "precision", "train_tokens", "val_tokens", "dataset")}
        for name, value in shown.items():
            values = by_name.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in by_name.items()}
