"""Giving an arm of a comparison as many parameters, FLOPs or bytes of cache as the reference has.

Only sizes that the study allows are changed, as little as possible: an arm that is near enough stays as it is; else a
size takes the multiple of 8 that matches best, and another value only where no multiple of 8 is near enough.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyllm.config.compose import D_FF
from tinyllm.config.no_effect import RULES
from tinyllm.errors import UserError
from tinyllm.programs.cost import Account, Allow, account_of_node
from tinyllm.studies.compare.matchable_sizes import KNOBS, Level, Node, levels_of, replaced_by, value_of
from tinyllm.studies.compare.size_search import Search

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class Match:
    """A figure that can be matched."""

    field: str
    """Of an account."""
    unit: str
    by: tuple[str, ...]
    """The sizes that change unless the study names others: the first that the model has."""


MATCHES = {
    "params": Match(field="parameters", unit="parameters", by=("expert_d_ff", "d_ff")),
    "active_params": Match(field="active_parameters", unit="active parameters", by=("expert_d_ff", "d_ff")),
    "flops": Match(field="flops_per_token", unit="FLOPs per token", by=("expert_d_ff", "d_ff")),
    "kv_bytes": Match(field="kv_bytes_per_token", unit="bytes of cache per token", by=("kv_latent_dim", "n_kv_heads")),
}
"""By the names that ``match`` takes, beside none. The experts of a mixture count as its feed-forward layer."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An arm as it is matched."""

    values: dict[str, int]
    """What changed, by key."""
    account: Account
    mismatch: float | None
    """Relative to the target: 0.004 is 0.4 % more. None: nothing is matched."""

    @property
    def replaced(self) -> list[str]:
        """Keys that have no effect beside the new values, and may not be named with them."""
        return sorted({dead for key in self.values for dead in replaced_by(key)})


def solve(
    cfg: "DictConfig",
    *,
    target: Account,
    match: str,
    match_by: Sequence[str] | None,
    fixed: Collection[str],
    tolerance: float,
    vocab_size: int,
    allow: Allow = frozenset(),
) -> Solution:
    """The values with which an arm matches the reference.

    Args:
        cfg: the arm's composed configuration.
        target: the reference's account.
        match: a name of ``MATCHES``, or none.
        match_by: names of ``KNOBS``, of which each is tried alone, then several together; None: what is usual.
        fixed: keys that the arm itself sets.
        tolerance: largest relative mismatch.
        vocab_size: the tokenizer's.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: no values suffice; the line tells the closest. The arm does not build, or a name is unknown.
    """
    from tinyllm.programs.builders import plain

    node = plain(cfg.model)
    if match == NOTHING:
        account = account_of_node(node, vocab_size=vocab_size, seq_len=cfg.trainer.seq_len, allow=allow)
        return Solution(values={}, account=account, mismatch=None)
    wanted = MATCHES[check_name("match", match, (*MATCHES, NOTHING))]
    names = wanted.by if match_by is None else [check_name("match_by", name, KNOBS) for name in match_by]

    def cost(changed: Node) -> Account:
        return account_of_node(changed, vocab_size=vocab_size, seq_len=cfg.trainer.seq_len, allow=allow)

    search = Search(node=node, figure=wanted.field, target=getattr(target, wanted.field), cost=cost)
    knobs = {name: levels_of(KNOBS[name], node, fixed) for name in names}
    knobs = {name: levels for name, levels in knobs.items() if levels}
    attempts = (one for levels in knobs.values() for one in search.alone(levels))
    if match_by is not None:
        attempts = (one for both in (attempts, search.together(list(knobs.values()))) for one in both)
    found = search.best
    while abs(found.mismatch) > tolerance:
        try:
            found = next(attempts)
        except StopIteration:
            raise _impossible(search, wanted, match, names, knobs, node, fixed) from None
    values = found.values | _held(found.values, node, fixed)
    return Solution(values=values, account=found.account, mismatch=found.mismatch)


def _held(values: Mapping[str, int], node: Node, fixed: Collection[str]) -> dict[str, int]:
    """What would follow another width, and stayed as it is in the search: the hidden size."""
    dead = any(rule.when(value_of(node, rule.by)) for rule in RULES if D_FF in rule.keys)
    if "model.d_model" not in values or D_FF in {*values, *fixed} or dead or "d_ff" not in node:
        return {}
    return {D_FF: node["d_ff"]}


def check_name(key: str, name: str, known: Iterable[str]) -> str:
    """A name that is known.

    Raises:
        UserError: it is not.
    """
    if name not in known:
        raise UserError("value not allowed", key=key, value=name, hint=f"one of {', '.join(known)}")
    return name


def _impossible(
    search: Search,
    wanted: Match,
    match: str,
    names: Sequence[str],
    knobs: dict[str, list[Level]],
    node: Node,
    fixed: Collection[str],
) -> UserError:
    """The error that tells the closest values, and what may be allowed."""
    best = search.best
    value = getattr(best.account, wanted.field)
    settings = " ".join(f"{key}={number}" for key, number in best.values.items()) or "what the arm has"
    off = f"{abs(best.mismatch):.2%} {'more' if best.mismatch > 0 else 'less'} than the reference's {search.target:,}"
    idle = [name for name, levels in knobs.items() if {level.key for level in levels} <= search.without_effect]
    usable = [name for name in names if name in knobs and name not in idle]
    why = "" if usable else f"; of what may change ({', '.join(names)}) nothing has an effect here or is left free"
    left = {name: levels_of(knob, node, fixed) for name, knob in KNOBS.items() if name not in names}
    others = [name for name, levels in left.items() if any(search.matters(level) for level in levels)]
    allow = f"match_by=[{','.join([*usable, *others])}] would allow more; " if others else ""
    hint = f"closest is {settings} with {value:,} {wanted.unit}, {off}{why}; {allow}tolerance=… or match=none"
    return UserError("an arm cannot be matched", key="match", value=match, hint=hint)
