"""A scaling study: train the ladder, fit the law, derive optima and caveats."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.grammar import key_of
from tinyllm.config.learning_rates import followed_rule
from tinyllm.data.run_data import n_tokens
from tinyllm.studies.compare.composed_arms import needs_gpu
from tinyllm.studies.compare.pipeline import StudyRuns
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Run
from tinyllm.studies.compare.run_ledger import default_study_dir
from tinyllm.studies.compare.run_pool import device_slots
from tinyllm.studies.compare.runner import provenance_of
from tinyllm.studies.scaling import law as scaling_law
from tinyllm.studies.scaling.ladder import OWN, LadderRun
from tinyllm.studies.scaling.law import FittedRun, IsoFlopParabola, Law, Optimum, TokenCost
from tinyllm.utils.files import write_json
from tinyllm.utils.nested import is_within
from tinyllm.utils.stop_signal import StopRequest

METRIC = "val/loss"  # nats per token, in which the law is stated
STUDY = "scaling.json"
REPEATS = 4
"""Epochs beyond which repeated data is worth less than fresh data (Muennighoff et al. 2023, arXiv 2305.16264)."""
MIN_SHARE = 0.02
"""A fitted E below this share of the smallest loss is not distinguishable from zero."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One run with its size, its budget and its cost."""

    size: str
    budget: float
    parameters: int
    tokens: int
    flops_per_token: int
    run: Run

    @property
    def fitted(self) -> FittedRun | None:
        """The run as input of the fit; None if it did not finish."""
        if self.run.value is None:
            return None
        return FittedRun(
            budget=self.budget,
            parameters=self.parameters,
            tokens=self.tokens,
            flops_per_token=self.flops_per_token,
            loss=self.run.value,
        )


@dataclass(frozen=True, kw_only=True)
class ScalingStudy:
    """Results of a scaling study: what ``scaling.json`` holds and the report shows."""

    command: str
    budgets: list[float]
    train_tokens: int
    runs: list[Trained]
    price: TokenCost
    law: Law
    between: dict[str, tuple[float, float]]
    """95 % intervals of the law's parameters and of ``exponent``, by name."""
    exponent: float
    """Exponent a of N* ∝ C^a, where C is the budget."""
    misfit: float
    """Root-mean-square error of the law in log L."""
    draws: int
    """Number of bootstrap samples behind the intervals."""
    optima: list[Optimum]
    """At the trained budgets, then at ``scaling.targets``."""
    valleys: list[IsoFlopParabola]
    notes: list[str]
    provenance: dict[str, Any]


def study_directory(cfg: DictConfig, invocation: Invocation) -> Path:
    """``scaling.out``; by default a directory named after a hash of the training settings."""
    if cfg.scaling.out is not None:
        return Path(cfg.scaling.out)
    shared = [setting for setting in invocation.overrides if not is_within(key_of(setting), OWN)]
    return default_study_dir("scaling", invocation.choices["model"], shared)


def conduct(
    cfg: DictConfig,
    invocation: Invocation,
    ladder_runs: Sequence[LadderRun],
    directory: Path,
    stop: StopRequest,
    screen: Screen,
) -> ScalingStudy:
    """Train the missing runs, fit the law and write ``scaling.json``.

    Raises:
        Stopped: a signal arrived.
        UserError: too few runs finished, or a run's files were edited.
    """
    per_run = cfg.strategy.get("nproc_per_node") or 1
    arms = [ladder_run.arm for ladder_run in ladder_runs]
    study_runs = StudyRuns(
        directory=directory,
        arms=arms,
        reference=arms[0],
        slots=device_slots(cfg.scaling.parallel, per_run=per_run, on_gpu=needs_gpu(cfg)),
        stop=stop,
        metric=METRIC,
        config_dir=invocation.config_dir,
        allow=invocation.allow,
        screen=screen,
    )
    seeds = [int(cfg.seed) + i for i in range(cfg.scaling.seeds)]
    study_runs.train(arms, seeds)
    runs = study_runs.results(arms, seeds)
    screen.say(f"fitting the law, and {cfg.scaling.draws} bootstrap samples for its intervals")
    by_name = {ladder_run.arm.name: ladder_run for ladder_run in ladder_runs}
    study = study_of(
        [_trained(by_name[run.arm], run) for run in runs],
        command=shlex.join(["python", "-m", "tinyllm.scaling", *invocation.arguments]),
        targets=list(cfg.scaling.targets),
        draws=cfg.scaling.draws,
        seed=cfg.seed,
        train_tokens=n_tokens(arms[0].data, "train"),
        provenance=provenance_of(directory, runs),
    )
    rules = dict.fromkeys(str(rule) for arm in arms if (rule := followed_rule(arm.cfg)) is not None)
    study = replace(study, notes=[*study.notes, *(f"peak learning rate of each size by the {rule}" for rule in rules)])
    write_json(directory / STUDY, asdict(study))
    return study


def _trained(ladder_run: LadderRun, run: Run) -> Trained:
    arm = ladder_run.arm
    return Trained(
        size=arm.name.rpartition(" ")[0],
        budget=ladder_run.budget,
        parameters=arm.account.active_parameters,
        tokens=arm.tokens,
        flops_per_token=arm.account.flops_per_token,
        run=run,
    )


def study_of(
    runs: Sequence[Trained],
    *,
    command: str,
    targets: Sequence[float],
    draws: int,
    seed: int,
    train_tokens: int,
    provenance: dict[str, Any],
) -> ScalingStudy:
    """Fit the law to the finished runs; add its intervals, optima and caveats.

    Raises:
        UserError: too few runs finished.
    """
    fitted_runs = [run.fitted for run in runs if run.fitted is not None]
    price, law = scaling_law.price_of(fitted_runs), scaling_law.fit(fitted_runs)
    laws = scaling_law.bootstrap(fitted_runs, law, draws=draws, seed=seed)
    budgets = sorted({run.budget for run in runs})
    optima = [
        scaling_law.with_interval(scaling_law.optimum(law, price, flops), laws, price) for flops in (*budgets, *targets)
    ]
    between = {name: scaling_law.central_interval([getattr(sampled, name) for sampled in laws]) for name in asdict(law)}
    between["exponent"] = scaling_law.central_interval([scaling_law.exponent(sampled, price) for sampled in laws])
    errors = [np.log(law.loss(run.parameters, run.tokens) / run.loss) for run in fitted_runs]
    return ScalingStudy(
        command=command,
        budgets=budgets,
        train_tokens=train_tokens,
        runs=list(runs),
        price=price,
        law=law,
        between=between,
        exponent=scaling_law.exponent(law, price),
        misfit=float(np.sqrt(np.mean(np.square(errors)))),
        draws=draws,
        optima=optima,
        valleys=scaling_law.isoflop_parabolas(fitted_runs, price),
        notes=notes_of(runs, law, optima, train_tokens=train_tokens),
        provenance=provenance,
    )


def notes_of(runs: Sequence[Trained], law: Law, optima: Sequence[Optimum], *, train_tokens: int) -> list[str]:
    """Caveats: failed runs, optima at or beyond the edge of the ladder, repeated data, an ill-determined law."""
    fitted_runs = [run.fitted for run in runs if run.fitted is not None]
    notes = [f"{t.run.arm}, seed {t.run.seed}, {t.run.status}: {t.run.error}" for t in runs if t.fitted is None]
    for budget in sorted({run.budget for run in fitted_runs}):
        at_budget = [run for run in fitted_runs if run.budget == budget]
        best = min(at_budget, key=lambda run: run.loss).parameters
        for edge, word in ((min, "smallest"), (max, "largest")):
            if best == edge(run.parameters for run in at_budget):
                notes.append(
                    f"at {budget:g} FLOPs the {word} size has the lowest loss, so the optimum may lie beyond the ladder"
                )
    smallest, largest = min(run.parameters for run in fitted_runs), max(run.parameters for run in fitted_runs)
    top = max(run.budget for run in fitted_runs)
    for optimum in optima:
        if not smallest <= optimum.parameters <= largest:
            notes.append(
                f"the optimum at {optimum.flops:g} FLOPs, {optimum.parameters:,.0f} parameters, lies outside the"
                f" trained sizes ({smallest:,} to {largest:,}) and is an extrapolation"
            )
        if optimum.flops > top:
            notes.append(
                f"{optimum.flops:g} FLOPs is {optimum.flops / top:.3g} times the largest trained budget: its optimum is"
                " an extrapolation"
            )
    epochs = max(run.tokens for run in fitted_runs) / train_tokens
    if epochs > REPEATS:
        notes.append(f"the longest run sees its training data {epochs:.1f} times, but the law assumes fresh data")
    if MIN_SHARE * min(run.loss for run in fitted_runs) > law.E:
        notes.append("these runs do not determine the irreducible loss E: the ladder is too small for that")
    low, high = scaling_law.EXPONENTS
    for name in ("alpha", "beta"):
        if not 1.01 * low < getattr(law, name) < 0.99 * high:
            notes.append(
                f"{name} is at the limit of its search range ({low:g} to {high:g}): the law does not fit these runs"
            )
    return notes
