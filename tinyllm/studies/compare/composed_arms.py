"""The composed arms of a comparison: matched to the reference and given a horizon, before anything trains."""

import copy
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.compose import compose, compose_with_choices
from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import unquoted
from tinyllm.config.targets import Option
from tinyllm.data.batch import TOKENS, WindowSource
from tinyllm.data.run_data import RunData, whole_order, windows_per_epoch
from tinyllm.errors import UserError, setting
from tinyllm.programs.builders import HORIZON, build_objective, plain, planned_batch
from tinyllm.programs.cost import ModelCost, model_cost
from tinyllm.studies.compare.arm_data import arm_data, meta_model, step_tokens
from tinyllm.studies.compare.arms import ArmSet, ArmSpec
from tinyllm.studies.compare.budget import Budget, TrainingCost
from tinyllm.studies.compare.matching import solve
from tinyllm.studies.compare.run_ledger import run_name
from tinyllm.training.batch_plan import BatchPlan, plan_steps
from tinyllm.training.curriculum import Curriculum
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.seeds import derive_seed


@dataclass(kw_only=True)
class ComposedArm:
    """An arm with its configuration, data and costs. Matching, budget and tuning change it until its runs start."""

    spec: ArmSpec
    cfg: DictConfig
    """The configuration of its runs, but for the seed."""
    overrides: list[str]
    """The settings that compose ``cfg``, in Hydra's grammar, literal values quoted."""
    data: RunData
    account: ModelCost
    batch: BatchPlan
    objective: Objective
    """On a model without memory."""
    choices: dict[str, str]
    """The chosen option of each group."""
    tokens_per_step: int
    """Training tokens of a step: of rows of different lengths the mean, of answers that are generated the most."""
    generated_per_step: int
    """Tokens generated for a step, at most."""
    solved: dict[str, int] = field(default_factory=dict)
    """Values chosen by the matching, by key."""
    mismatch: float | None = None
    """Relative difference from the reference in the matched figure; None: nothing is matched."""
    tokens_per_s: float | None = None
    """Measured training speed; None: not measured."""
    max_steps: int = 0
    tuned: dict[str, Any] = field(default_factory=dict)
    """Values chosen by trials, by key."""
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the arm."""
        return self.spec.name

    @property
    def tokens(self) -> int:
        """Training tokens of one run."""
        return self.max_steps * self.tokens_per_step

    @property
    def cost(self) -> TrainingCost:
        """The cost of its training steps."""
        return TrainingCost(
            tokens_per_step=self.tokens_per_step,
            flops_per_token=self.account.flops_per_token,
            tokens_per_s=self.tokens_per_s,
            generated_per_step=self.generated_per_step,
            flops_per_generated=self.account.decode_flops_per_token,
        )

    def set(self, key: str, value: Any) -> None:
        """Change a key for all runs of the arm."""
        OmegaConf.update(self.cfg, key, value)
        self.overrides = [*without_keys(self.overrides, [key]), setting(key, value)]

    def own_horizon(self) -> int:
        """The number of steps that its own configuration asks for."""
        windows = windows_per_epoch(self.data, seq_len=self.batch.seq_len)
        return plan_steps(
            self.batch,
            **{name: self.cfg.trainer[name] for name in HORIZON},
            epoch_tokens=windows * self.batch.seq_len,
            curriculum=Curriculum(**plain(self.cfg.curriculum), seq_len=self.batch.seq_len),
        )

    def settings(self, seed: int) -> list[str]:
        """The settings of the run with this seed."""
        return [*without_keys(self.overrides, ["seed"]), f"seed={seed}"]

    def run_name(self, seed: int) -> str:
        """The directory name of the run with this seed."""
        cfg = copy.deepcopy(self.cfg)
        cfg.seed = seed
        return run_name(self.name, seed, plain(cfg), self.data.fingerprints())


def without_keys(settings: Iterable[str], keys: Collection[str]) -> list[str]:
    """The settings whose keys are not in ``keys``."""
    return [setting for setting in settings if key_of(setting) not in keys]


def compose_arms(
    arms: ArmSet,
    *,
    own: Collection[str],
    defaults: Sequence[str],
    config_dir: str | None,
    allow: frozenset[Option],
    lines: bool = True,
) -> list[ComposedArm]:
    """Compose every arm and open its data.

    Args:
        own: keys of the study itself, which training does not know.
        defaults: settings for the keys that the command line does not set.
        lines: print the stages of data preparation to standard output.

    Raises:
        UserError: an arm does not compose or cannot be built; the message names it.
    """
    opened: dict[str, RunData] = {}
    composed = []
    for spec in arms.specs:
        given = arms.settings_of(spec, without=own)
        overrides = [*without_keys(defaults, set(map(key_of, given))), *given]
        try:
            composed.append(_composed(spec, overrides, opened, config_dir, allow, lines))
        except UserError as error:
            hint = f"arm {spec.name}: {error.hint}" if error.hint else f"arm {spec.name}"
            raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error
    return composed


def _composed(
    spec: ArmSpec,
    overrides: list[str],
    opened: dict[str, RunData],
    config_dir: str | None,
    allow: frozenset[Option],
    lines: bool,
) -> ComposedArm:
    """Compose one arm; arms with the same dataset and tokenizer share their data through ``opened``."""
    cfg, choices = compose_with_choices(unquoted(overrides), program="train", config_dir=config_dir)
    if not cfg.trainer.eval_every:
        hint = "set it to at least 1; the last step is always evaluated as well"
        raise UserError("a comparison needs evaluations", key="trainer.eval_every", value=0, hint=hint)
    objective = build_objective(cfg, meta_model(cfg, allow=allow), allow=allow)
    start = None if objective.reads == TOKENS else cfg.init_from
    source = json.dumps([objective.reads, start, plain(cfg.dataset), plain(cfg.tokenizer)], sort_keys=True)
    if source not in opened:
        opened[source] = arm_data(cfg, objective, allow=allow, lines=lines)
    data = opened[source]
    batch = planned_batch(cfg, world_size=cfg.strategy.get("nproc_per_node") or 1)
    trained, generated = step_tokens(objective, data, batch)
    vocab_size = cfg.model.vocab_size or data.tokenizer.vocab_size
    costs = model_cost(cfg, vocab_size=vocab_size, source=measured_source(cfg, data, batch), allow=allow)
    return ComposedArm(
        spec=spec,
        cfg=cfg,
        overrides=overrides,
        data=data,
        account=costs,
        batch=batch,
        objective=objective,
        choices=choices,
        tokens_per_step=trained,
        generated_per_step=generated,
    )


def measured_source(cfg: DictConfig, data: RunData, batch: BatchPlan) -> WindowSource | None:
    """The data whose documents decide how many FLOPs a token takes; None: it does not depend on documents."""
    if not cfg.model.get("document_mask"):
        return None
    return whole_order(data, seq_len=batch.seq_len, seed=derive_seed(cfg.seed, "data"))


def reference_of(arms: Sequence[ComposedArm], name: str | None) -> ComposedArm:
    """The arm that the others are compared with: the named one, or the first.

    Raises:
        UserError: no arm has that name.
    """
    if name is None:
        return arms[0]
    for arm in arms:
        if arm.name == name:
            return arm
    hint = f"one of {', '.join(arm.name for arm in arms)}"
    raise UserError("no such arm", key="reference", value=name, hint=hint)


def match_arms(
    arms: Sequence[ComposedArm],
    reference: ComposedArm,
    *,
    match: str,
    match_by: Sequence[str] | None,
    tolerance: float,
    allow: frozenset[Option],
) -> None:
    """Change the sizes of the arms until each costs what the reference does; see :func:`~matching.solve`.

    Raises:
        UserError: an arm cannot be matched; the message names it and the closest values.
    """
    for arm in arms:
        if arm is reference:
            arm.mismatch = None if match == "none" else 0.0
            continue
        try:
            solution = solve(
                arm.cfg,
                target=reference.account,
                match=match,
                match_by=match_by,
                fixed={key_of(setting) for setting in arm.spec.settings},
                tolerance=tolerance,
                vocab_size=arm.cfg.model.vocab_size or arm.data.tokenizer.vocab_size,
                source=measured_source(arm.cfg, arm.data, arm.batch),
                allow=allow,
            )
        except UserError as error:
            hint = f"arm {arm.name} against {reference.name}: {error.hint}"
            raise UserError(error.what, key=error.key, value=error.value, hint=hint) from error
        arm.solved, arm.account, arm.mismatch = dict(solution.values), solution.account, solution.mismatch
        arm.overrides = without_keys(arm.overrides, solution.replaced)
        for key, value in solution.values.items():
            arm.set(key, value)


def give_horizon(
    arms: Sequence[ComposedArm], budget: Budget, amount: float, *, evaluations: int | None, config_dir: str | None
) -> None:
    """Set the horizon of each arm to what the budget pays for.

    Args:
        evaluations: number of equally spaced evaluations per run; None: as configured.

    Raises:
        UserError: the budget does not pay for a single step, or for the schedule.
    """
    for arm in arms:
        arm.max_steps = budget.steps(arm.cost, amount, arm=arm.name)
        arm.overrides = without_keys(arm.overrides, [f"trainer.{name}" for name in HORIZON])
        for name in HORIZON:
            OmegaConf.update(arm.cfg, f"trainer.{name}", None)
        if arm.objective.reads == TOKENS:
            arm.set("trainer.max_tokens", arm.tokens)
        else:  # their rows have lengths of their own
            arm.set("trainer.max_steps", arm.max_steps)
        if evaluations is not None:
            # Rounded up: the last step is evaluated in any case and would add one.
            arm.set("trainer.eval_every", max(1, -(-arm.max_steps // evaluations)))
        recompose(arm, config_dir=config_dir)


def recompose(arm: ComposedArm, *, config_dir: str | None) -> None:
    """Compose the arm again from its changed settings, so that ``cfg`` is what its runs will have.

    Raises:
        UserError: a changed value conflicts with the others.
    """
    arm.cfg = compose(*unquoted(arm.overrides), config_dir=config_dir)


def needs_gpu(cfg: DictConfig) -> bool:
    """Whether runs of this configuration use a GPU."""
    return bool(cfg.trainer.device == "cuda" or (cfg.trainer.device == "auto" and torch.cuda.is_available()))
