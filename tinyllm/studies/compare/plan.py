"""The plan of a comparison: its arms and runs with their cost, known before anything trains.

``dry_run=true`` prints it. In the study's directory, ``plan.json`` tells which runs there will be while they train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.studies.compare.composed_arms import ComposedArm
from tinyllm.studies.compare.seed_planning import PILOT
from tinyllm.studies.compare.timing import ROUNDS
from tinyllm.utils.text import quantity, short

PLAN = "plan.json"
RUNS = "runs"
"""The folder of the runs in the directory of a study."""


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An arm and the cost of each of its runs."""

    name: str
    settings: list[str]
    """The settings that distinguish the arm."""
    solved: dict[str, int]
    """Values chosen by the matching, by key."""
    mismatch: float | None
    """The matched figure relative to the reference."""
    parameters: int
    active_parameters: int
    flops_per_token: int
    kv_bytes_per_token: int
    max_steps: int | None
    """None: known once its speed is measured (``budget=minutes``)."""
    tokens: int | None
    flops: int | None
    objective: str = ""
    """The chosen option; "": planned by a version that did not record it."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of the study."""

    arm: str
    seed: int
    path: str
    """Its directory, relative to the study's."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A comparison before it has results."""

    question: str
    command: str
    directory: str
    metric: str
    match: str
    reference: str
    budget: str
    """tokens, flops or minutes."""
    amount: float
    """The budget of one run."""
    seeds: list[int]
    """Empty with ``seeds=auto`` until the pilot has shown how many are needed."""
    parallel: int
    """Runs at a time."""
    arms: list[PlannedArm]
    runs: list[PlannedRun]
    """Empty until steps and seeds are known."""
    others: dict[str, int]
    """Further runs, by purpose: timing, trials, pilot."""
    tokens: int | None
    """Of all runs of the arms together; None: not known yet."""
    flops: int | None
    minutes: float | None
    """Training time of all runs of the arms together, where the budget says so."""


def planned_arm(arm: ComposedArm) -> PlannedArm:
    """An arm with what is known of its cost."""
    known = arm.max_steps > 0
    return PlannedArm(
        name=arm.name,
        settings=list(arm.spec.settings),
        solved=arm.solved,
        mismatch=arm.mismatch,
        parameters=arm.account.parameters,
        active_parameters=arm.account.active_parameters,
        flops_per_token=arm.account.flops_per_token,
        kv_bytes_per_token=arm.account.kv_bytes_per_token,
        max_steps=arm.max_steps if known else None,
        tokens=arm.tokens if known else None,
        flops=arm.max_steps * arm.cost.flops_per_step if known else None,
        objective=arm.choices["objective"],
    )


def make_plan(
    arms: Sequence[ComposedArm],
    *,
    seeds: Sequence[int],
    trials: int,
    needs_speed: bool,
    **facts: Any,
) -> StudyPlan:
    """The plan of these arms and seeds.

    Args:
        seeds: empty while a pilot has to find how many are needed.
        trials: of the tuning, per arm; 0: nothing is tuned.
        needs_speed: whether the arms are timed first.
        facts: the other fields of the plan.
    """
    planned = [planned_arm(arm) for arm in arms]
    is_known = bool(seeds) and all(arm.max_steps and (arm.tuned or not trials) for arm in arms)
    # Seed by seed, as they are trained.
    runs = [(arm, seed) for seed in seeds for arm in arms] if is_known else []
    others = {"timing": ROUNDS * len(arms) * needs_speed, "trials": trials * len(arms)}
    others["pilot"] = 2 * PILOT * (not seeds)
    return StudyPlan(
        seeds=list(seeds),
        arms=planned,
        runs=[PlannedRun(arm=arm.name, seed=seed, path=f"{RUNS}/{arm.run_name(seed)}") for arm, seed in runs],
        others={name: number for name, number in others.items() if number},
        tokens=len(seeds) * sum(arm.tokens or 0 for arm in planned) if is_known else None,
        flops=len(seeds) * sum(arm.flops or 0 for arm in planned) if is_known else None,
        minutes=facts["amount"] * len(arms) * len(seeds) if needs_speed and seeds else None,
        **facts,
    )


def cost_line(plan: StudyPlan) -> str:
    """What the whole study costs, in one line."""
    number = len(plan.seeds) * len(plan.arms)
    runs = f"{number} runs" if plan.seeds else "as many runs as a pilot shows are needed"
    parts = [f"{len(plan.arms)} arms, {runs}, {plan.parallel} at a time"]
    if plan.tokens is not None and plan.flops is not None:
        parts.append(f"{short(plan.tokens)} training tokens and {quantity(plan.flops, 'FLOP')} in all")
    if plan.minutes is not None:
        parts.append(f"{plan.minutes:g} minutes of training in all")
    names = {"timing": "to measure the speed", "trials": "to tune", "pilot": "of the pilot"}
    parts += [f"before that {count} short runs {names[name]}" for name, count in plan.others.items()]
    return "; ".join(parts)
