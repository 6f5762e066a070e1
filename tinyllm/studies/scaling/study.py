"""A scaling study carried out: the ladder's runs, the law through them, and what it says."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.config.grammar import key_of
from tinyllm.studies.compare.composed_arms import needs_gpu
from tinyllm.studies.compare.pipeline import Comparison
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Run
from tinyllm.studies.compare.run_pool import places
from tinyllm.studies.compare.runner import provenance_of
from tinyllm.studies.scaling import law as scaling_law
from tinyllm.studies.scaling.ladder import OWN, Rung
from tinyllm.studies.scaling.law import Law, Optimum, Point, Price, Valley
from tinyllm.utils.files import write_json
from tinyllm.utils.nested import is_within
from tinyllm.utils.stop_signal import StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation

METRIC = "val/loss"
STUDY = "scaling.json"
REPEATS = 4
"""Passes over the data from which on it is worth less than fresh data (Muennighoff et al. 2023, arXiv 2305.16264)."""
HIDDEN = 0.02
"""E below this share of the smallest loss is not seen."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One run with what it stands for."""

    size: str
    budget: float
    parameters: int
    tokens: int
    flops_per_token: int
    run: Run

    @property
    def point(self) -> Point | None:
        """What the law is fitted to; None: the run did not finish."""
        if self.run.value is None:
            return None
        return Point(
            budget=self.budget,
            parameters=self.parameters,
            tokens=self.tokens,
            flops_per_token=self.flops_per_token,
            loss=self.run.value,
        )


@dataclass(frozen=True, kw_only=True)
class ScalingStudy:
    """Everything that is shown."""

    command: str
    budgets: list[float]
    train_tokens: int
    runs: list[Trained]
    price: Price
    law: Law
    between: dict[str, tuple[float, float]]
    """Intervals of the law's parameters and of the exponent of N*, by name."""
    exponent: float
    """N* grows as the budget to this power."""
    misfit: float
    """Root mean square of what the law misses log L by."""
    draws: int
    optima: list[Optimum]
    """At the budgets, then at the targets."""
    valleys: list[Valley]
    notes: list[str]
    provenance: dict[str, Any]


def place(cfg: "DictConfig", invocation: "Invocation") -> Path:
    """The study's directory: as asked for, else the same one for the same settings of training."""
    if cfg.scaling.out is not None:
        return Path(cfg.scaling.out)
    shared = sorted(one for one in invocation.overrides if not is_within(key_of(one), OWN))
    digest = hashlib.sha256("\n".join(shared).encode()).hexdigest()[:8]
    return Path("outputs") / "scaling" / f"{invocation.choices['model']}_{digest}"


def conduct(
    cfg: "DictConfig",
    invocation: "Invocation",
    rungs: Sequence[Rung],
    directory: Path,
    stop: StopRequest,
    screen: Screen,
) -> ScalingStudy:
    """Train what is missing, fit the law; ``scaling.json`` holds what came of it.

    Raises:
        Stopped: a signal came.
        UserError: too few runs finished, or one was changed by hand.
    """
    per_run = cfg.strategy.get("nproc_per_node") or 1
    arms = [rung.arm for rung in rungs]
    comparison = Comparison(
        directory=directory,
        arms=arms,
        reference=arms[0],
        where=places(cfg.scaling.parallel, per_run=per_run, on_gpu=needs_gpu(cfg)),
        stop=stop,
        metric=METRIC,
        flags=[] if invocation.config_dir is None else ["--config-dir", invocation.config_dir],
        config_dir=invocation.config_dir,
        allow=invocation.allow,
        screen=screen,
    )
    seeds = [int(cfg.seed) + i for i in range(cfg.scaling.seeds)]
    comparison.train(arms, seeds)
    runs = comparison.runs(arms, seeds)
    screen.say(f"fitting the law, and {cfg.scaling.draws} times more for its intervals")
    by_name = {rung.arm.name: rung for rung in rungs}
    study = study_of(
        [_trained(by_name[run.arm], run) for run in runs],
        command=shlex.join(["python", "-m", "tinyllm.scaling", *invocation.arguments]),
        targets=list(cfg.scaling.targets),
        draws=cfg.scaling.draws,
        seed=cfg.seed,
        train_tokens=arms[0].data.train.n_tokens,
        provenance=provenance_of(directory, runs),
    )
    write_json(directory / STUDY, asdict(study))
    return study


def _trained(rung: Rung, run: Run) -> Trained:
    arm = rung.arm
    return Trained(
        size=arm.name.rpartition(" ")[0],
        budget=rung.budget,
        parameters=arm.account.active_parameters,
        tokens=arm.max_steps * arm.batch.tokens,
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
    """The law through the runs that finished, its intervals, and what limits it.

    Raises:
        UserError: they are too few.
    """
    points = [one.point for one in runs if one.point is not None]
    price, law = scaling_law.price_of(points), scaling_law.fit(points)
    laws = scaling_law.bootstrap(points, law, draws=draws, seed=seed)
    budgets = sorted({one.budget for one in runs})
    optima = [
        scaling_law.with_interval(scaling_law.optimum(law, price, flops), laws, price) for flops in (*budgets, *targets)
    ]
    between = {name: scaling_law.middle([getattr(one, name) for one in laws]) for name in asdict(law)}
    between["exponent"] = scaling_law.middle([scaling_law.exponent(one, price) for one in laws])
    misses = [np.log(law.loss(one.parameters, one.tokens) / one.loss) for one in points]
    return ScalingStudy(
        command=command,
        budgets=budgets,
        train_tokens=train_tokens,
        runs=list(runs),
        price=price,
        law=law,
        between=between,
        exponent=scaling_law.exponent(law, price),
        misfit=float(np.sqrt(np.mean(np.square(misses)))),
        draws=draws,
        optima=optima,
        valleys=scaling_law.valleys(points, price),
        notes=notes_of(runs, law, optima, train_tokens=train_tokens),
        provenance=provenance,
    )


def notes_of(runs: Sequence[Trained], law: Law, optima: Sequence[Optimum], *, train_tokens: int) -> list[str]:
    """What a reader has to know: optima at an edge or beyond it, repeated data, what the law cannot tell, lost runs."""
    points = [one.point for one in runs if one.point is not None]
    notes = [f"{one.run.arm}, seed {one.run.seed}, {one.run.status}: {one.run.error}" for one in runs if not one.point]
    for budget in sorted({one.budget for one in points}):
        mine = [one for one in points if one.budget == budget]
        found = min(mine, key=lambda one: one.loss).parameters
        for edge, word in ((min, "smallest"), (max, "largest")):
            if found == edge(one.parameters for one in mine):
                notes.append(
                    f"at {budget:g} FLOPs the {word} size is the best: the optimum lies at an edge of the ladder"
                )
    smallest, largest = min(one.parameters for one in points), max(one.parameters for one in points)
    top = max(one.budget for one in points)
    for best in optima:
        if not smallest <= best.parameters <= largest:
            notes.append(
                f"the optimum at {best.flops:g} FLOPs, {best.parameters:,.0f} parameters, lies outside of the sizes"
                f" that were trained, {smallest:,} to {largest:,}: it is extrapolated"
            )
        if best.flops > top:
            notes.append(f"{best.flops:g} FLOPs are {best.flops / top:.3g} times the largest budget: extrapolated")
    passes = max(one.tokens for one in points) / train_tokens
    if passes > REPEATS:
        notes.append(f"the longest run passes over its data {passes:.1f} times; the law means fresh data")
    if HIDDEN * min(one.loss for one in points) > law.E:
        notes.append("the irreducible loss E cannot be told from these runs: the ladder is too small for it")
    for name in ("alpha", "beta"):
        low, high = scaling_law.EXPONENTS
        if not 1.01 * low < getattr(law, name) < 0.99 * high:
            notes.append(f"{name} lies at the end of the range that is searched: the law does not describe these runs")
    return notes
