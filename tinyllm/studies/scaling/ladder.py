"""The runs of a scaling study: sizes at budgets of FLOPs, each with the horizon that its budget pays for."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.config.grammar import words
from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import Asked, Choice
from tinyllm.studies.compare.budget import Flops
from tinyllm.studies.compare.composed_arms import ComposedArm, compose_arms, give_horizon

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation

OWN = ("scaling",)
MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Heads of the sizes that are tried of themselves."""
FEWEST = 3
"""Sizes that a budget needs, for a lowest point between others."""
NOT_HERE = {
    "trainer.max_steps": "scaling.budgets sets the horizon of every run",
    "trainer.max_tokens": "scaling.budgets sets the horizon of every run",
    "trainer.max_epochs": "scaling.budgets sets the horizon of every run",
    "trainer.max_minutes": "scaling.budgets sets the horizon of every run",
    "trainer.stop_after_steps": "every run goes to its horizon",
    "trainer.eval_every": "every run is evaluated at its end",
    "run.dir": "every run has its own directory below scaling.out",
    "run.name": "every run has its own directory below scaling.out",
    "resume": "the same command goes on where it was stopped",
}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size at one budget."""

    budget: float
    arm: ComposedArm

    @property
    def tokens_per_parameter(self) -> float:
        """Of its run."""
        return self.arm.max_steps * self.arm.batch.tokens / self.arm.account.active_parameters


def check_settings(scaling: Mapping[str, Any], typed: frozenset[str]) -> None:
    """Refuse what the study cannot do.

    Raises:
        UserError: too few budgets, or ones that are no ladder; a target too far away; a key that it sets itself.
    """
    for key in sorted(typed & NOT_HERE.keys()):
        raise UserError("not a setting of a scaling study", file=key, hint=NOT_HERE[key])
    budgets = [float(one) for one in scaling["budgets"]]
    if len(budgets) < 2 or sorted(set(budgets)) != budgets or budgets[0] <= 0:
        hint = "at least two, in ascending order, e.g. [1e12,3e12,1e13]"
        raise UserError("no ladder of budgets", key="scaling.budgets", value=scaling["budgets"], hint=hint)
    low, high = budgets[0] / scaling["reach"], budgets[-1] * scaling["reach"]
    for target in scaling["targets"]:
        if not low <= target <= high:
            hint = (
                f"the budgets reach from {budgets[0]:g} to {budgets[-1]:g}, and a law says nothing more than"
                f" {scaling['reach']:g} times beyond; add budgets, or raise scaling.reach if you know better"
            )
            raise UserError("too far to extrapolate", key="scaling.targets", value=f"{target:g}", hint=hint)
    between = scaling["tokens_per_parameter"]
    if len(between) != 2 or not 0 < between[0] < between[1]:
        hint = "the least and the most, e.g. [2,500]"
        raise UserError("no range", key="scaling.tokens_per_parameter", value=between, hint=hint)


def ladder(cfg: "DictConfig", invocation: "Invocation") -> list[Rung]:
    """Every run of the study, composed and with its horizon.

    Raises:
        UserError: a size that does not compose, too few of them, or a budget too small for one.
    """
    scaling = cfg.scaling
    by_itself = scaling.sizes == "auto"
    if by_itself:
        sizes = _proportional(cfg)
    elif isinstance(scaling.sizes, str):
        raise UserError(
            "no list of sizes", key="scaling.sizes", value=scaling.sizes, hint="auto, or a list of settings"
        )
    else:
        sizes = [Choice(name=text, settings=tuple(quote_literals(words(text)))) for text in map(str, scaling.sizes)]
    arms = _composed(sizes, invocation, cfg, by_itself=by_itself)
    rungs = []
    for budget in map(float, scaling.budgets):
        chosen = _allowed(arms, budget, cfg) if by_itself else arms
        if len({arm.account.active_parameters for arm in chosen}) < FEWEST:
            found = ", ".join(arm.name for arm in chosen) or "none"
            between = list(scaling.tokens_per_parameter)
            hint = f"at least {FEWEST}; with scaling.tokens_per_parameter={between} there are {found}"
            raise UserError("too few sizes at a budget", key="scaling.budgets", value=f"{budget:g}", hint=hint)
        for arm in chosen:
            rungs.append(Rung(budget=budget, arm=_at(arm, budget, invocation.config_dir)))
    return rungs


def _at(arm: ComposedArm, budget: float, config_dir: str | None) -> ComposedArm:
    """The arm with the horizon that the budget pays for, evaluated at its end."""
    choice = replace(arm.choice, name=f"{arm.name} {budget:g}")
    mine = replace(arm, choice=choice, cfg=copy.deepcopy(arm.cfg), overrides=list(arm.overrides))
    try:
        give_horizon([mine], Flops(amount=budget), budget, evaluations=1, config_dir=config_dir)
    except UserError as error:
        if error.key != "budget.amount":
            raise
        raise UserError(error.what, key="scaling.budgets", value=f"{budget:g}", hint=error.hint) from error
    return mine


def _proportional(cfg: "DictConfig") -> list[Choice]:
    """Sizes of more and more heads, with layers and hidden units in the proportion of the model that is set."""
    model, head = cfg.model, cfg.scaling.head_dim
    found = []
    for heads in MULTIPLES:
        width = heads * head
        values = {
            "d_model": width,
            "n_heads": heads,
            "n_layers": max(1, round(model.n_layers * width / model.d_model)),
            "d_ff": round(model.d_ff * width / model.d_model),
        }
        found.append(Choice(name=f"d{width}", settings=tuple(f"model.{key}={value}" for key, value in values.items())))
    return found


def _composed(
    sizes: Sequence[Choice], invocation: "Invocation", cfg: "DictConfig", *, by_itself: bool
) -> list[ComposedArm]:
    """The sizes from the smallest on; those that were tried of themselves and do not compose are left out.

    Raises:
        UserError: a size that was asked for does not compose, or none does; two are the same.
    """
    defaults = [f"trainer.sample_every={cfg.trainer.sample_every}"]
    arms: list[ComposedArm] = []
    refused: UserError | None = None
    most = max(map(float, cfg.scaling.budgets)) / cfg.scaling.tokens_per_parameter[0]
    for size in sizes:
        asked = Asked(shared=tuple(invocation.overrides), arms=(size,))
        try:
            [arm] = compose_arms(
                asked, own=OWN, defaults=defaults, config_dir=invocation.config_dir, allow=invocation.allow
            )
        except UserError as error:
            if not by_itself:
                raise
            refused = error
            continue
        arms.append(arm)
        if by_itself and arm.account.active_parameters * arm.account.flops_per_token > most:
            break  # larger ones see fewer tokens still
    if refused is not None and len(arms) < FEWEST:
        raise refused
    return sorted(arms, key=lambda arm: arm.account.active_parameters)


def _allowed(arms: Sequence[ComposedArm], budget: float, cfg: "DictConfig") -> list[ComposedArm]:
    """The sizes whose run has an allowed number of tokens for each parameter, spread evenly over their logarithms."""
    low, high = cfg.scaling.tokens_per_parameter
    fit = [arm for arm in arms if low <= budget / arm.account.flops_per_token / arm.account.active_parameters <= high]
    if len(fit) <= cfg.scaling.per_budget:
        return fit
    logs = np.log([arm.account.active_parameters for arm in fit])
    wanted = np.linspace(logs[0], logs[-1], cfg.scaling.per_budget)
    nearest = sorted({int(np.abs(logs - one).argmin()) for one in wanted})
    return [fit[index] for index in nearest]
