"""The search for the values of sizes with which a composition costs what it is to cost."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

from tinyllm.errors import UserError
from tinyllm.programs.cost import Account
from tinyllm.studies.compare.matchable_sizes import Level, Node, value_of, with_value

NEIGHBOURS = 32
"""How far around a value that a module refuses another one is looked for."""
COMBINATIONS = 24
"""How many values of the other sizes are tried with the finest one, where none suffices alone."""


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
    figure: str
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
        """The best value of each level, beside ``values``; finer ones would not help where the end is the best."""
        for level in levels:
            found = None if level.key in self.without_effect else self._nearest(level, values or {})
            if found:
                yield found
                end = level.values[0 if found.mismatch > 0 else -1]
                if found.mismatch and found.values[level.key] == end:
                    return

    def together(self, knobs: list[list[Level]]) -> Iterator[Candidate]:
        """The best values of the size with the finest steps, beside those of the others, the nearest first."""
        if len(knobs) < 2:
            return
        *others, finest = sorted(knobs, key=lambda levels: len(levels[-1].values))
        others = [levels for levels in others if value_of(self.node, levels[0].key) is not None]
        steps = [self._around(levels[0]) for levels in others]
        combinations = sorted(product(*steps), key=lambda one: sum(distance for distance, _ in one))[1:]
        for combination in combinations[:COMBINATIONS]:
            moved = zip(others, combination, strict=True)
            values = {levels[0].key: value for levels, (distance, value) in moved if distance}
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
        value = getattr(account, self.figure)
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
