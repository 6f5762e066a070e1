"""The arms of a comparison composed, matched and given their horizon, before anything trains."""

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.compose import compose
from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import unquoted
from tinyllm.config.targets import Option
from tinyllm.data.prepare import TokenData
from tinyllm.data.sampler import Sampler
from tinyllm.errors import UserError, setting
from tinyllm.programs.builders import HORIZON, open_corpus, open_data, plain, planned_batch
from tinyllm.programs.cost import Account, account
from tinyllm.studies.compare.arms import Asked, Choice
from tinyllm.studies.compare.budget import Budget, Cost
from tinyllm.studies.compare.matching import solve
from tinyllm.studies.compare.run_ledger import run_name
from tinyllm.training.batch_plan import BatchPlan, plan_steps
from tinyllm.training.curriculum import Curriculum


@dataclass(kw_only=True)
class ComposedArm:
    """An arm with everything that is known of it before training."""

    choice: Choice
    cfg: DictConfig
    """The configuration of its runs, but for the seed; changed as matching, budget and tuning go on."""
    overrides: list[str]
    """What composes it, in Hydra's grammar, literal values quoted."""
    data: TokenData
    account: Account
    batch: BatchPlan
    solved: dict[str, int] = field(default_factory=dict)
    mismatch: float | None = None
    tokens_per_s: float | None = None
    max_steps: int = 0
    tuned: dict[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The arm's."""
        return self.choice.name

    @property
    def cost(self) -> Cost:
        """What its steps take."""
        return Cost(
            tokens_per_step=self.batch.tokens,
            flops_per_token=self.account.flops_per_token,
            tokens_per_s=self.tokens_per_s,
        )

    def set(self, key: str, value: Any) -> None:
        """Change a key for all its runs."""
        OmegaConf.update(self.cfg, key, value)
        self.overrides = [one for one in self.overrides if key_of(one) != key] + [setting(key, value)]

    def own_horizon(self) -> int:
        """Steps that its own configuration asks for."""
        windows = Sampler(self.data.train, seq_len=self.batch.seq_len, seed=0).windows_per_epoch
        return plan_steps(
            self.batch,
            **{name: self.cfg.trainer[name] for name in HORIZON},
            epoch_tokens=windows * self.batch.seq_len,
            curriculum=Curriculum(**plain(self.cfg.curriculum), seq_len=self.batch.seq_len),
        )

    def settings(self, seed: int) -> list[str]:
        """Of one run."""
        return [*(one for one in self.overrides if key_of(one) != "seed"), f"seed={seed}"]

    def run_name(self, seed: int) -> str:
        """Of one run's directory."""
        cfg = copy.deepcopy(self.cfg)
        cfg.seed = seed
        return run_name(self.name, seed, plain(cfg), self.data.fingerprints())


def compose_arms(
    asked: Asked, *, own: Collection[str], defaults: Sequence[str], config_dir: str | None, allow: frozenset[Option]
) -> list[ComposedArm]:
    """Compose every arm and open its data.

    Args:
        own: the comparison's own keys, which training does not know.
        defaults: settings that hold where the command line is silent.

    Raises:
        UserError: an arm that does not compose, or cannot be built; the line names it.
    """
    opened: dict[str, TokenData] = {}
    arms = []
    for choice in asked.arms:
        given = asked.of(choice, without=own)
        typed = {key_of(one) for one in given}
        overrides = [*(one for one in defaults if key_of(one) not in typed), *given]
        try:
            arms.append(_composed(choice, overrides, opened, config_dir, allow))
        except UserError as error:
            hint = f"arm {choice.name}: {error.hint}" if error.hint else f"arm {choice.name}"
            raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error
    return arms


def _composed(
    choice: Choice, overrides: list[str], opened: dict[str, TokenData], config_dir: str | None, allow: frozenset[Option]
) -> ComposedArm:
    cfg = compose(*unquoted(overrides), config_dir=config_dir)
    if not cfg.trainer.eval_every:
        hint = "at least 1; the last step is then evaluated"
        raise UserError("a comparison needs evaluations", key="trainer.eval_every", value=0, hint=hint)
    source = json.dumps([plain(cfg.dataset), plain(cfg.tokenizer)], sort_keys=True)
    if source not in opened:
        opened[source] = open_data(*open_corpus(cfg, allow=allow))
    data = opened[source]
    batch = planned_batch(cfg, world_size=cfg.strategy.get("nproc_per_node") or 1)
    costs = account(cfg, vocab_size=cfg.model.vocab_size or data.tokenizer.vocab_size, allow=allow)
    return ComposedArm(choice=choice, cfg=cfg, overrides=overrides, data=data, account=costs, batch=batch)


def reference_of(arms: Sequence[ComposedArm], name: str | None) -> ComposedArm:
    """The arm that the others are measured against.

    Raises:
        UserError: there is none of that name.
    """
    if name is None:
        return arms[0]
    for arm in arms:
        if arm.name == name:
            return arm
    hint = f"one of {', '.join(one.name for one in arms)}"
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
    """Change the arms until they cost what the reference does.

    Raises:
        UserError: an arm cannot be matched; the line names it and what comes closest.
    """
    for arm in arms:
        if arm is reference:
            arm.mismatch = None if match == "none" else 0.0
            continue
        try:
            found = solve(
                arm.cfg,
                target=reference.account,
                match=match,
                match_by=match_by,
                fixed={key_of(one) for one in arm.choice.settings},
                tolerance=tolerance,
                vocab_size=arm.cfg.model.vocab_size or arm.data.tokenizer.vocab_size,
                allow=allow,
            )
        except UserError as error:
            hint = f"arm {arm.name} against {reference.name}: {error.hint}"
            raise UserError(error.what, key=error.key, value=error.value, hint=hint) from error
        arm.solved, arm.account, arm.mismatch = dict(found.values), found.account, found.mismatch
        arm.overrides = [one for one in arm.overrides if key_of(one) not in found.replaced]
        for key, value in found.values.items():
            arm.set(key, value)


def give_horizon(
    arms: Sequence[ComposedArm], budget: Budget, amount: float, *, evaluations: int | None, config_dir: str | None
) -> None:
    """Set each arm's horizon to what the amount pays for.

    Args:
        evaluations: of each run, equally spaced; None: as its configuration says.

    Raises:
        UserError: it does not pay for a step, or not for the schedule.
    """
    for arm in arms:
        arm.max_steps = budget.steps(arm.cost, amount, arm=arm.name)
        for name in HORIZON:
            arm.overrides = [one for one in arm.overrides if key_of(one) != f"trainer.{name}"]
            OmegaConf.update(arm.cfg, f"trainer.{name}", None)
        arm.set("trainer.max_tokens", arm.max_steps * arm.batch.tokens)
        if evaluations is not None:
            arm.set("trainer.eval_every", max(1, -(-arm.max_steps // evaluations)))
        recompose(arm, config_dir=config_dir)


def same_metric(arms: Sequence[ComposedArm]) -> str:
    """What the arms are compared by: bits per byte, or the loss where nobody knows the bytes.

    Raises:
        UserError: losses of different tokens.
    """
    if all(arm.data.val.token_bytes is not None for arm in arms):
        return "val/bpb"
    if len({arm.data.val.fingerprint for arm in arms}) > 1:
        hint = "the loss of a token says nothing across vocabularies, and these data have no bytes; compare one of them"
        raise UserError("the arms are measured on different tokens", file="val/loss", hint=hint)
    return "val/loss"


def recompose(arm: ComposedArm, *, config_dir: str | None) -> None:
    """Compose it anew with what was changed: from now on its configuration is what its runs will have.

    Raises:
        UserError: a changed value does not go together with the others.
    """
    arm.cfg = compose(*unquoted(arm.overrides), config_dir=config_dir)


def needs_gpu(cfg: DictConfig) -> bool:
    """Whether runs of this configuration take a GPU."""
    return bool(cfg.trainer.device == "cuda" or (cfg.trainer.device == "auto" and torch.cuda.is_available()))
