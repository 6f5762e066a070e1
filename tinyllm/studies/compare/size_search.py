"""The search for sizes with which a model costs as much as the reference."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

from tinyllm.errors import UserError
from tinyllm.programs.cost import ModelCost
from tinyllm.studies.compare.matchable_sizes import Level, Node, value_of, with_value

NEIGHBOURS = 32
"""Distance within which a replacement is sought for a value that a module rejects."""
COMBINATIONS = 24
"""Number of combinations of the other sizes to try with the finest one, where no size suffices alone."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Values that were tried, with their cost."""

    values: dict[str, int]
    account: ModelCost
    mismatch: float
    """Relative difference from the target."""


@dataclass(kw_only=True)
class SizeSearch:
    """Tries values for the sizes of one arm and remembers them all.

    Args:
        figure: the field of :class:`ModelCost` to match.
        target: its value in the reference.
        cost: computes the account of a model node.
    """

    node: Node
    figure: str
    target: int
    cost: Callable[[Node], ModelCost]
    tried: dict[tuple[tuple[str, int], ...], Candidate | None] = field(default_factory=dict)
    """None: a module rejects the values."""
    without_effect: set[str] = field(default_factory=set)
    """Keys on which the figure does not depend."""

    def __post_init__(self) -> None:
        account = self.cost(self.node)
        self.tried[()] = Candidate(values={}, account=account, mismatch=self._mismatch(account))

    @property
    def best(self) -> Candidate:
        """The candidate closest to the target; the first of several."""
        return min((tried for tried in self.tried.values() if tried), key=lambda tried: abs(tried.mismatch))

    def alone(self, levels: list[Level], others: dict[str, int] | None = None) -> Iterator[Candidate]:
        """The best value on each level of one size, with the ``others`` fixed.

        Ends early where the best value is at the end of a level: a finer level would stop there as well.
        """
        for level in levels:
            found = None if level.key in self.without_effect else self._nearest(level, others or {})
            if found:
                yield found
                end = level.values[0 if found.mismatch > 0 else -1]
                if found.mismatch and found.values[level.key] == end:
                    return

    def together(self, sizes: list[list[Level]]) -> Iterator[Candidate]:
        """The best value of the finest size, for combinations of the other sizes near the model's own."""
        if len(sizes) < 2:
            return
        *others, finest = sorted(sizes, key=lambda levels: len(levels[-1].values))
        others = [levels for levels in others if value_of(self.node, levels[0].key) is not None]
        steps = [self._by_distance(levels[0]) for levels in others]
        combinations = sorted(product(*steps), key=lambda steps: sum(distance for distance, _ in steps))
        for combination in combinations[1 : COMBINATIONS + 1]:  # the first one changes nothing
            changed = zip(others, combination, strict=True)
            values = {levels[0].key: value for levels, (distance, value) in changed if distance}
            yield from self.alone(finest, values)

    def matters(self, level: Level) -> bool:
        """Whether the figure depends on the key of a level."""
        ends = [self._try({level.key: value}) for value in (level.values[0], level.values[-1])]
        return len({end.mismatch for end in ends if end}) > 1

    def _by_distance(self, level: Level) -> list[tuple[float, int]]:
        """The values of a level with their relative distance from the model's own value, nearest first."""
        own = int(value_of(self.node, level.key))
        distances = {value: abs(value - own) / own for value in (own, *level.values)}
        return sorted((distance, value) for value, distance in distances.items())[:COMBINATIONS]

    def _mismatch(self, account: ModelCost) -> float:
        value = getattr(account, self.figure)
        return value / self.target - 1 if self.target else (math.inf if value else 0.0)

    def _try(self, values: dict[str, int]) -> Candidate | None:
        """The candidate with these values; None: a module rejects them."""
        key = tuple(values.items())
        if key not in self.tried:
            node = self.node
            for name, value in values.items():
                node = with_value(node, name, value)
            try:
                account = self.cost(node)
                self.tried[key] = Candidate(values=values, account=account, mismatch=self._mismatch(account))
            except UserError:
                self.tried[key] = None
        return self.tried[key]

    def _try_at(self, level: Level, index: int, others: dict[str, int]) -> Candidate | None:
        return self._try(others | {level.key: level.values[index]})

    def _nearest(self, level: Level, others: dict[str, int]) -> Candidate | None:
        """The best value of a level, by root finding between its ends: a larger size never costs less."""
        low, high = 0, len(level.values) - 1
        while not (first := self._try_at(level, low, others)) and low < high:
            low = 2 * low + 1 if 2 * low + 1 < high else high
        while not (last := self._try_at(level, high, others)) and low < high:
            high = max(low, high // 2)
        if first is None or last is None:
            return None
        if low < high and first.mismatch == last.mismatch:
            self.without_effect.add(level.key)
            return None
        # Interpolation takes two or three models where the cost is linear in the size; a bisection after each step
        # that removed less than half of the interval bounds the number where it is not.
        halve = False
        while high - low > 1 and first.mismatch < 0 < last.mismatch:
            share = 0.5 if halve else -first.mismatch / (last.mismatch - first.mismatch)
            guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
            nearby = ((index, self._try_at(level, index, others)) for index in _outward(guess, low, high))
            middle, found = next(((index, tried) for index, tried in nearby if tried), (guess, None))
            if found is None:
                break
            width = high - low
            if found.mismatch < 0:
                low, first = middle, found
            else:
                high, last = middle, found
            halve = not halve and high - low > width / 2
        return min(first, last, key=lambda end: abs(end.mismatch))


def _outward(start: int, low: int, high: int) -> Iterator[int]:
    """The integers between ``low`` and ``high``, nearest to ``start`` first."""
    yield start
    for distance in range(1, NEIGHBOURS + 1):
        yield from (index for index in (start - distance, start + distance) if low < index < high)
