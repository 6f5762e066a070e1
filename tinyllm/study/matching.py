"""Giving an arm of a comparison as many parameters, FLOPs or bytes of cache as the reference has.

Only sizes that the study allows are changed, as little as possible: an arm that is near enough stays as it is; else a
size takes the multiple of 8 that matches best, and another value only where no multiple of 8 is near enough.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from tinyllm.errors import UserError
from tinyllm.study.accounts import Allow, of_node
from tinyllm.study.knobs import KNOBS, Level, Node, levels_of, replaced_by, value_of, with_value
from tinyllm.study.results import Account

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOTHING = "none"
NEIGHBOURS = 32
"""How far around a value that a module refuses another one is looked for."""
COMBINATIONS = 24
"""How many values of the other sizes are tried with the finest one, where none suffices alone."""


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
        allow: targets allowed besides tinyllm's own.

    Raises:
        UserError: no values suffice; the line tells the closest. The arm does not build, or a name is unknown.
    """
    from tinyllm.assemble import plain

    node = plain(cfg.model)
    if match == NOTHING:
        account = of_node(node, vocab_size=vocab_size, seq_len=cfg.trainer.seq_len, allow=allow)
        return Solution(values={}, account=account, mismatch=None)
    wanted = MATCHES[check_name("match", match, (*MATCHES, NOTHING))]
    names = wanted.by if match_by is None else [check_name("match_by", name, KNOBS) for name in match_by]

    def cost(changed: Node) -> Account:
        return of_node(changed, vocab_size=vocab_size, seq_len=cfg.trainer.seq_len, allow=allow)

    search = Search(node=node, field=wanted.field, target=getattr(target, wanted.field), cost=cost)
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
    return Solution(values=found.values, account=found.account, mismatch=found.mismatch)


def check_name(key: str, name: str, known: Iterable[str]) -> str:
    """A name that is known.

    Raises:
        UserError: it is not.
    """
    if name not in known:
        raise UserError("value not allowed", key=key, value=name, hint=f"one of {', '.join(known)}")
    return name


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Values that were tried."""

    values: dict[str, int]
    account: Account
    mismatch: float


@dataclass(kw_only=True)
class Search:
    """The values that were tried for one arm."""

    node: Node
    field: str
    target: int
    cost: Callable[[Node], Account]
    tried: dict[tuple[tuple[str, int], ...], Candidate | None] = field(default_factory=dict)
    without_effect: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        account = self.cost(self.node)
        self.tried[()] = Candidate(values={}, account=account, mismatch=self._mismatch(account))

    @property
    def best(self) -> Candidate:
        """The closest so far; of several, the first."""
        return min((one for one in self.tried.values() if one), key=lambda one: abs(one.mismatch))

    def alone(self, levels: list[Level], values: dict[str, int] | None = None) -> Iterator[Candidate]:
        """The best value of each level, beside ``values``."""
        for level in levels:
            found = self._nearest(level, values or {})
            if found:
                yield found

    def together(self, knobs: list[list[Level]]) -> Iterator[Candidate]:
        """The best values of the size with the finest steps, beside those of the others, the nearest first."""
        if len(knobs) < 2:
            return
        *others, finest = sorted(knobs, key=lambda levels: len(levels[-1].values))
        others = [levels for levels in others if value_of(self.node, levels[0].key) is not None]
        steps = [self._around(levels[0]) for levels in others]
        combinations = sorted(product(*steps), key=lambda one: sum(distance for distance, _ in one))[1:]
        for combination in combinations[:COMBINATIONS]:
            values = {levels[0].key: value for levels, (_, value) in zip(others, combination, strict=True)}
            yield from self.alone(finest, values)

    def matters(self, level: Level) -> bool:
        """Whether the figure depends on a key."""
        ends = [self._try({level.key: value}) for value in (level.values[0], level.values[-1])]
        return len({one.mismatch for one in ends if one}) > 1

    def _around(self, level: Level) -> list[tuple[float, int]]:
        """The values of a key by their relative distance to its own, which is the first."""
        own = int(value_of(self.node, level.key))
        distances = {value: abs(value - own) / own for value in (own, *level.values)}
        return sorted((distance, value) for value, distance in distances.items())[:COMBINATIONS]

    def _mismatch(self, account: Account) -> float:
        value = getattr(account, self.field)
        return value / self.target - 1 if self.target else (math.inf if value else 0.0)

    def _try(self, values: dict[str, int]) -> Candidate | None:
        """The candidate with some values; None: a module refuses them."""
        key = tuple(values.items())
        if key not in self.tried:
            node = self.node
            for one, value in values.items():
                node = with_value(node, one, value)
            try:
                account = self.cost(node)
                self.tried[key] = Candidate(values=values, account=account, mismatch=self._mismatch(account))
            except UserError:
                self.tried[key] = None
        return self.tried[key]

    def _nearest(self, level: Level, others: dict[str, int]) -> Candidate | None:
        """The best value of a level: a search between the ends, since more of a size never costs less."""
        points: dict[int, Candidate | None] = {}

        def at(index: int) -> Candidate | None:
            points[index] = self._try(others | {level.key: level.values[index]})
            return points[index]

        low, high = 0, len(level.values) - 1
        while not at(low) and low < high:
            low = 2 * low + 1 if 2 * low + 1 < high else high
        while not at(high) and low < high:
            high = max(low, high // 2)
        first, last = points[low], points[high]
        if first is None or last is None:
            return None
        if low < high and first.mismatch == last.mismatch:
            self.without_effect.add(level.key)
            return None
        halve = False
        while high - low > 1 and first.mismatch < 0 < last.mismatch:
            share = 0.5 if halve else -first.mismatch / (last.mismatch - first.mismatch)
            guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
            middle = next((i for i in _outward(guess, low, high) if at(i)), None)
            if middle is None:
                break
            found = points[middle]
            assert found is not None
            width = high - low
            if found.mismatch < 0:
                low, first = middle, found
            else:
                high, last = middle, found
            halve = not halve and high - low > width / 2
        return min(first, last, key=lambda one: abs(one.mismatch))


def _outward(start: int, low: int, high: int) -> Iterator[int]:
    """Numbers between two, the nearest to ``start`` first."""
    yield start
    for distance in range(1, NEIGHBOURS + 1):
        yield from (one for one in (start - distance, start + distance) if low < one < high)


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
