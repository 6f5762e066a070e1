"""Peak learning rates: the rule behind ``optimizer.lr: null``.

The rate falls with the width: lr = c · 128 / width, with a constant c for each optimizer. An update changes a layer's
output by an amount proportional to lr · width, if it aligns with the input, for every optimizer whose steps have a size
independent of the gradient (Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix C). Under muP, the width is
the base width: muP itself scales the rates of wider models.

The constants are fitted by ``python benchmarks/lr_rule.py``; experiments/lr_rule has the figures. After equally many
steps, Muon's best rate was the same multiple of 1 / width at 128, 256 and 384, within 6 %. With the number of steps, it
varies by a factor of two, without a trend, so the rule has no factor for it. Changing the constants changes no saved
run: a run stores its rate in ``config.yaml`` and resumes with it.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.quoting import conformed
from tinyllm.errors import UserError

BASE_WIDTH = 128
"""Width at which the rule gives its constant; that of ``model=nano``."""
DIGITS = 3
"""Significant digits of a rate, so that it can be read and typed."""
LR = "optimizer.lr"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """lr = constant · 128 / width, for one optimizer."""

    optimizer: str
    constant: float

    def rate(self, width: int) -> float:
        """The peak learning rate at a width, to three significant digits."""
        return float(f"{self.constant * BASE_WIDTH / width:.{DIGITS}g}")


RULES = {
    "tinyllm.optim.muon.Muon": Rule(optimizer="muon", constant=0.02),
    "tinyllm.optim.adamw.adamw": Rule(optimizer="adamw", constant=3e-3),
    "tinyllm.optim.adamw8bit.adamw8bit": Rule(optimizer="adamw8bit", constant=3e-3),
    "tinyllm.optim.lion.Lion": Rule(optimizer="lion", constant=5e-4),
}
"""By the class or function that ``optimizer._target_`` names."""


@dataclass(frozen=True, kw_only=True)
class AppliedRule:
    """A rule applied to a configuration."""

    rule: Rule
    width: int
    width_name: str
    """``d_model``, or ``base_width`` under muP."""

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.rule.rate(self.width)

    def __str__(self) -> str:
        return f"rule for {self.rule.optimizer}, {self.rule.constant:g}·{BASE_WIDTH}/{self.width_name}"


def rule_of(cfg: Any) -> AppliedRule | None:
    """The rule for the optimizer of a configuration; None if it has no rule or the width is unknown."""
    rule = RULES.get(str(OmegaConf.select(cfg, "optimizer._target_")))
    if rule is None:
        return None
    for key in ("model.parametrization.base_width", "model.d_model"):
        width = conformed(OmegaConf.select(cfg, key, throw_on_missing=False), int)
        if isinstance(width, int) and not isinstance(width, bool) and width > 0:
            return AppliedRule(rule=rule, width=width, width_name=key.rpartition(".")[2])
    return None


def followed_rule(cfg: Any) -> AppliedRule | None:
    """The rule whose value the learning rate of a configuration has; None if it has a different value."""
    applied = rule_of(cfg)
    return applied if applied is not None and cfg.optimizer.lr == applied.rate else None


def origin_of_rate(cfg: Any) -> str:
    """Where the learning rate of a configuration comes from: the rule, or else what the rule would give."""
    applied = rule_of(cfg)
    if applied is None:
        return "as set"
    return str(applied) if cfg.optimizer.lr == applied.rate else f"as set; the {applied}, gives {applied.rate:g}"


def fill_learning_rate(cfg: DictConfig) -> None:
    """Replace ``optimizer.lr=null`` by the rule's value, so that saved configurations hold the number.

    Args:
        cfg: a composed configuration, changed in place; one without an optimizer is left as it is.

    Raises:
        UserError: there is a rule for the optimizer, but the model has no width.
    """
    node = None if "optimizer" not in cfg or OmegaConf.is_missing(cfg, "optimizer") else cfg.optimizer
    if not isinstance(node, DictConfig) or node.get("lr", 0) is not None or str(node.get("_target_")) not in RULES:
        return
    applied = rule_of(cfg)
    if applied is not None:
        with open_dict(cfg):
            node.lr = applied.rate
    elif OmegaConf.select(cfg, "model.d_model", throw_on_missing=False) is None:
        hint = "the rule for it needs model.d_model, which this model does not have: set the learning rate"
        raise UserError("no learning rate", key=LR, value="null", hint=hint)
