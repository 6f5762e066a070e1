"""The ladder of a scaling study: model sizes at FLOP budgets, each trained for as long as its budget allows."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.grammar import words
from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import ArmSet, ArmSpec
from tinyllm.studies.compare.budget import Flops
from tinyllm.studies.compare.composed_arms import ComposedArm, compose_arms, give_horizon

OWN = ("scaling",)
"""Keys of the study itself; every other key is training's."""
MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of heads of the sizes that ``scaling.sizes=auto`` tries."""
FEWEST = 3
"""Sizes needed at a budget, so that a minimum can lie between two others."""
_HORIZON = "scaling.budgets sets the length of every run"
_DIRECTORY = "every run has its own directory below scaling.out"
NOT_HERE = {
    **dict.fromkeys((f"trainer.max_{unit}" for unit in ("steps", "tokens", "epochs", "minutes")), _HORIZON),
    "trainer.stop_after_steps": "every run is trained to its end",
    "trainer.eval_every": "every run is evaluated once, at its end",
    "run.dir": _DIRECTORY,
    "run.name": _DIRECTORY,
    "resume": "the same command continues where it was stopped",
    **dict.fromkeys(("init_from", "lora"), "every size is trained from random weights"),
}
"""Training keys that a scaling study sets itself, with the reason."""


@dataclass(frozen=True, kw_only=True)
class LadderRun:
    """One size at one budget."""

    budget: float
    arm: ComposedArm

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens of the run for each active parameter."""
        return self.arm.tokens / self.arm.account.active_parameters


def check_settings(scaling: Mapping[str, Any], typed: frozenset[str]) -> None:
    """Check the keys of the study and refuse training keys that it sets itself.

    Raises:
        UserError: budgets that are too few or not ascending, a target too far from them, a key the study sets.
    """
    for key in sorted(typed & NOT_HERE.keys()):
        raise UserError("the key has no effect in a scaling study", file=key, hint=NOT_HERE[key])
    budgets = [float(budget) for budget in scaling["budgets"]]
    if len(budgets) < 2 or sorted(set(budgets)) != budgets or budgets[0] <= 0:
        hint = "at least two budgets in ascending order, e.g. [1e12,3e12,1e13]"
        raise UserError("invalid budgets", key="scaling.budgets", value=scaling["budgets"], hint=hint)
    low, high = budgets[0] / scaling["reach"], budgets[-1] * scaling["reach"]
    for target in scaling["targets"]:
        if not low <= target <= high:
            hint = (
                f"the budgets range from {budgets[0]:g} to {budgets[-1]:g}, and a fitted law is not trusted more than"
                f" a factor of {scaling['reach']:g} outside that range; add budgets or raise scaling.reach"
            )
            raise UserError("too far to extrapolate", key="scaling.targets", value=f"{target:g}", hint=hint)
    between = scaling["tokens_per_parameter"]
    if len(between) != 2 or not 0 < between[0] < between[1]:
        hint = "the smallest and the largest ratio, e.g. [2,500]"
        raise UserError("not a range", key="scaling.tokens_per_parameter", value=between, hint=hint)


def ladder(cfg: DictConfig, invocation: Invocation) -> list[LadderRun]:
    """Compose every run of the study and give it the number of steps its budget pays for.

    Raises:
        UserError: a size does not compose, a budget has too few sizes, or a budget is too small for a size.
    """
    scaling = cfg.scaling
    automatic = scaling.sizes == "auto"
    if automatic:
        sizes = _proportional(cfg)
    elif isinstance(scaling.sizes, str):
        raise UserError(
            "not a list of sizes", key="scaling.sizes", value=scaling.sizes, hint="auto, or a list of settings"
        )
    else:
        sizes = [ArmSpec(name=text, settings=tuple(quote_literals(words(text)))) for text in map(str, scaling.sizes)]
    arms = _composed(sizes, invocation, cfg, automatic=automatic)
    ladder_runs = []
    for budget in map(float, scaling.budgets):
        chosen = _allowed(arms, budget, cfg) if automatic else arms
        if len({arm.account.active_parameters for arm in chosen}) < FEWEST:
            names = ", ".join(arm.name for arm in chosen) or "none"
            ratios = list(scaling.tokens_per_parameter)
            hint = f"at least {FEWEST} are needed; scaling.tokens_per_parameter={ratios} allows {names}"
            raise UserError("too few sizes at a budget", key="scaling.budgets", value=f"{budget:g}", hint=hint)
        for arm in chosen:
            ladder_runs.append(LadderRun(budget=budget, arm=_at(arm, budget, invocation.config_dir)))
    return ladder_runs


def _at(arm: ComposedArm, budget: float, config_dir: str | None) -> ComposedArm:
    """Give an arm the number of steps that the budget pays for, with one evaluation at the end."""
    spec = replace(arm.spec, name=f"{arm.name} {budget:g}")
    arm_at_budget = replace(arm, spec=spec, cfg=copy.deepcopy(arm.cfg), overrides=list(arm.overrides))
    try:
        give_horizon([arm_at_budget], Flops(amount=budget), budget, evaluations=1, config_dir=config_dir)
    except UserError as error:
        if error.key != "budget.amount":
            raise
        raise UserError(error.what, key="scaling.budgets", value=f"{budget:g}", hint=error.hint) from error
    return arm_at_budget


def _proportional(cfg: DictConfig) -> list[ArmSpec]:
    """Sizes with more and more heads; depth and d_ff keep the proportions of the configured model."""
    model, head = cfg.model, cfg.scaling.head_dim
    sizes = []
    for heads in MULTIPLES:
        width = heads * head
        values = {
            "d_model": width,
            "n_heads": heads,
            "n_layers": max(1, round(model.n_layers * width / model.d_model)),
            "d_ff": round(model.d_ff * width / model.d_model),
        }
        sizes.append(ArmSpec(name=f"d{width}", settings=tuple(f"model.{key}={value}" for key, value in values.items())))
    return sizes


def _composed(
    sizes: Sequence[ArmSpec], invocation: Invocation, cfg: DictConfig, *, automatic: bool
) -> list[ComposedArm]:
    """Compose the sizes and sort them by active parameters. Automatic sizes that do not compose are left out.

    Raises:
        UserError: a requested size does not compose, too few automatic sizes do, or two sizes are the same.
    """
    # The runs are composed from train.yaml, which does not know the default of scaling.yaml.
    defaults = [f"trainer.sample_every={cfg.trainer.sample_every}"]
    arms: list[ComposedArm] = []
    refused: UserError | None = None
    most = max(map(float, cfg.scaling.budgets)) / cfg.scaling.tokens_per_parameter[0]
    for size in sizes:
        arm_set = ArmSet(shared=tuple(invocation.overrides), specs=(size,))
        try:
            [arm] = compose_arms(
                arm_set, own=OWN, defaults=defaults, config_dir=invocation.config_dir, allow=invocation.allow
            )
        except UserError as error:
            if not automatic:
                raise
            refused = error
            continue
        arms.append(arm)
        if automatic and arm.account.active_parameters * arm.account.flops_per_token > most:
            break  # larger sizes get even fewer tokens per parameter
    if refused is not None and len(arms) < FEWEST:
        raise refused
    return sorted(arms, key=lambda arm: arm.account.active_parameters)


def _allowed(arms: Sequence[ComposedArm], budget: float, cfg: DictConfig) -> list[ComposedArm]:
    """Sizes with an allowed number of tokens per parameter at this budget, spread evenly on a log scale."""
    low, high = cfg.scaling.tokens_per_parameter
    fit = [arm for arm in arms if low <= budget / arm.account.flops_per_token / arm.account.active_parameters <= high]
    if len(fit) <= cfg.scaling.per_budget:
        return fit
    logs = np.log([arm.account.active_parameters for arm in fit])
    wanted = np.linspace(logs[0], logs[-1], cfg.scaling.per_budget)
    nearest = sorted({int(np.abs(logs - size).argmin()) for size in wanted})
    return [fit[index] for index in nearest]
