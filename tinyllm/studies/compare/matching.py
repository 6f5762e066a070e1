"""Matching: an arm gets the parameters, FLOPs or cache bytes of the reference.

Only the sizes that the study allows are changed, and as little as possible. An arm within the tolerance stays as it is;
otherwise a size takes the multiple of 8 that matches best, and any other value only where no multiple of 8 suffices.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from omegaconf import DictConfig

from tinyllm.config.compose import D_FF
from tinyllm.config.no_effect import RULES
from tinyllm.data.batch import WindowSource
from tinyllm.errors import UserError
from tinyllm.programs.builders import plain
from tinyllm.programs.cost import Allow, ModelCost, cost_of_node
from tinyllm.studies.compare.matchable_sizes import SIZES, Level, Node, levels_of, replaced_by, value_of
from tinyllm.studies.compare.size_search import SizeSearch

NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class Match:
    """A figure that can be matched."""

    field: str
    """Its field in :class:`ModelCost`."""
    unit: str
    by: tuple[str, ...]
    """The sizes to change by default, those that the model has."""


MATCHES = {
    "params": Match(field="parameters", unit="parameters", by=("expert_d_ff", "d_ff")),
    "active_params": Match(field="active_parameters", unit="active parameters", by=("expert_d_ff", "d_ff")),
    "flops": Match(field="flops_per_token", unit="FLOPs per token", by=("expert_d_ff", "d_ff")),
    "kv_bytes": Match(field="kv_bytes_per_token", unit="bytes of cache per token", by=("kv_latent_dim", "n_kv_heads")),
}
"""The figures by their names in ``match``. In a mixture, the experts are the feed-forward layer to change."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A matched arm."""

    values: dict[str, int]
    """The changed sizes, by key."""
    account: ModelCost
    mismatch: float | None
    """Relative difference from the target: 0.004 is 0.4 % more. None: nothing is matched."""

    @property
    def replaced(self) -> list[str]:
        """Keys that have no effect beside the new values, so that they must not be set with them."""
        return sorted({dead for key in self.values for dead in replaced_by(key)})


def solve(
    cfg: DictConfig,
    *,
    target: ModelCost,
    match: str,
    match_by: Sequence[str] | None,
    fixed: Collection[str],
    tolerance: float,
    vocab_size: int,
    source: WindowSource | None = None,
    allow: Allow = frozenset(),
) -> Solution:
    """Find the sizes with which an arm matches the reference.

    Args:
        cfg: the arm's composed configuration.
        target: the reference's account.
        match: a name in ``MATCHES``, or none.
        match_by: names in ``SIZES``, tried one by one, then together; None: the figure's default sizes, one by one.
        fixed: keys that the arm itself sets.
        tolerance: largest relative mismatch.
        vocab_size: size of the tokenizer's vocabulary.
        source: the training data, see ``programs.cost.cost_of_model``.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: no values suffice (the message names the closest), the arm does not build, or a name is unknown.
    """
    node = plain(cfg.model)
    seq_len, lora = cfg.trainer.seq_len, plain(cfg.lora)
    cost = partial(cost_of_node, vocab_size=vocab_size, seq_len=seq_len, source=source, lora=lora, allow=allow)
    if match == NOTHING:
        return Solution(values={}, account=cost(node), mismatch=None)
    figure = MATCHES[check_name("match", match, (*MATCHES, NOTHING))]
    names = figure.by if match_by is None else [check_name("match_by", name, SIZES) for name in match_by]
    search = SizeSearch(node=node, figure=figure.field, target=getattr(target, figure.field), cost=cost)
    levels = {name: levels_of(SIZES[name], node, fixed) for name in names}
    levels = {name: to_try for name, to_try in levels.items() if to_try}
    # Generators: nothing is tried once a candidate is within the tolerance.
    attempts = [search.alone(to_try) for to_try in levels.values()]
    if match_by is not None:
        attempts.append(search.together(list(levels.values())))
    candidates = chain([search.best], *attempts)
    found = next((candidate for candidate in candidates if abs(candidate.mismatch) <= tolerance), None)
    if found is None:
        raise _no_match(search, figure, match, names, levels, node, fixed)
    values = found.values | _kept_d_ff(found.values, node, fixed)
    return Solution(values=values, account=found.account, mismatch=found.mismatch)


def _kept_d_ff(values: Mapping[str, int], node: Node, fixed: Collection[str]) -> dict[str, int]:
    """The d_ff to set beside a new d_model: left out, it would follow d_model, and the search held it fixed."""
    without_effect = any(rule.when(value_of(node, rule.key)) for rule in RULES if D_FF in rule.disables)
    if "model.d_model" not in values or D_FF in {*values, *fixed} or without_effect or "d_ff" not in node:
        return {}
    return {D_FF: node["d_ff"]}


def check_name(key: str, name: str, allowed: Iterable[str]) -> str:
    """Return ``name`` if it is allowed.

    Raises:
        UserError: it is not.
    """
    if name not in allowed:
        raise UserError("value not allowed", key=key, value=name, hint=f"one of {', '.join(allowed)}")
    return name


def _no_match(
    search: SizeSearch,
    figure: Match,
    match: str,
    names: Sequence[str],
    levels: Mapping[str, list[Level]],
    node: Node,
    fixed: Collection[str],
) -> UserError:
    """The error with the closest values and the sizes that would help."""
    best = search.best
    value = getattr(best.account, figure.field)
    settings = " ".join(f"{key}={number}" for key, number in best.values.items()) or "the arm as it is"
    off = f"{abs(best.mismatch):.2%} {'more' if best.mismatch > 0 else 'less'} than the reference's {search.target:,}"
    idle = [name for name, to_try in levels.items() if {level.key for level in to_try} <= search.without_effect]
    usable = [name for name in names if name in levels and name not in idle]
    idle_names = f"none of the sizes to change ({', '.join(names)})"
    why = "" if usable else f"; {idle_names} has an effect here or is still free to vary"
    others = {name: levels_of(size, node, fixed) for name, size in SIZES.items() if name not in names}
    helpful = [name for name, to_try in others.items() if any(map(search.matters, to_try))]
    more = f"match_by=[{','.join([*usable, *helpful])}] allows more sizes; " if helpful else ""
    closest = f"the closest match is {settings}, with {value:,} {figure.unit}, {off}{why}"
    hint = f"{closest}; {more}or set tolerance=… or match=none"
    return UserError("the arm cannot be matched", key="match", value=match, hint=hint)
