"""Problems of a family of tasks, their split by key, and the random numbers that they are drawn with."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from tinyllm.data.shuffle import draw
from tinyllm.data.tasks.phrasings import phrasings
from tinyllm.utils.expressions import same_values

SIDES = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
"""The residues modulo 10 of a problem's hash that belong to each split."""
INPUTS = (-7, -3, -1, 0, 1, 2, 5, 10, 64)
"""Values of x on which two expressions must agree to be the same function."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with a checked answer.

    Attributes:
        family: name of its family.
        key: identity of the problem, whatever its wording; decides its split.
        question: what the user asks.
        answer: the answer that training teaches.
        call: the expression whose value is the answer, for a tool; None: no tool helps.
        is_function: the answer is an expression in x, and any expression with the same values is right.
    """

    family: str
    key: str
    question: str
    answer: str
    call: str | None = None
    is_function: bool = False

    def accepts(self, answer: str) -> bool:
        """Whether an answer, without the sentence around it, is right."""
        if answer == self.answer:
            return True
        return self.is_function and same_values(answer, self.answer, name="x", inputs=INPUTS)


class Dice:
    """Random numbers that are a pure function of a key: cheaper to start than a generator, which is needed per problem.

    The n-th number is a hash of (key, n).
    """

    def __init__(self, *key: int) -> None:
        self._key, self._drawn = draw(*key), 0

    def below(self, n: int) -> int:
        """A whole number in 0 … n−1; the bias of the remainder is below n/2⁶⁴."""
        self._drawn += 1
        return draw(self._key, self._drawn) % n

    def of(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.below(2**53) < share * 2**53


class Family(ABC):
    """Problems of one kind.

    Attributes:
        name: what settings and metrics call the family.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, dice: Dice, *, unseen: bool) -> Problem:
        """A problem of any split.

        Args:
            unseen: worded as no training problem is.
        """

    def problem(self, dice: Dice, side: str, *, unseen: bool) -> Problem:
        """A problem of a split, by drawing until one belongs to it: then no split can hold a problem of another."""
        while side_of((problem := self.draw(dice, unseen=unseen)).key) != side:
            pass
        return problem


def side_of(key: str) -> str:
    """The split of a problem: sha256 of its key modulo 10, of which 0–7 are train, 8 is val and 9 is test."""
    residue = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big") % 10
    return next(side for side, residues in SIDES.items() if residue in residues)


def worded(operation: str, dice: Dice, *, unseen: bool, **parts: object) -> str:
    """An operation in one of its phrasings."""
    return dice.of(phrasings(operation, unseen=unseen)).format(**parts)
