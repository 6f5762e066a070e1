"""Base class of synthetic tasks: token sequences with questions whose answers follow from the preceding tokens."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import lgamma, log, log2

import numpy as np

from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE

Sequences = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, (n, seq_len) int64 each; the target is IGNORE except at questions."""

OVERLAP = 1e-6
"""Largest accepted probability that any test sequence was also trained on."""


class Task(ABC):
    """A set of equally likely sequences of one length.

    The target at a question follows from the inputs up to and including that position, and from nothing else.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Length of a sequence."""

    @property
    @abstractmethod
    def questions(self) -> int:
        """Number of questions in a sequence."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Best accuracy of a model that does not relate questions to the preceding tokens; see each task."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """log2 of the number of different sequences."""

    @abstractmethod
    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        """Draw ``n`` independent sequences."""

    def longer(self, factor: int) -> "Task":
        """The same task ``factor`` times as long, over the same token ids.

        Raises:
            UserError: the task does not support other lengths.
        """
        hint = "give it a method longer(factor)"
        raise UserError("the task does not support other lengths", file=type(self).__name__, hint=hint)

    def tests(self) -> Mapping[str, "Task"]:
        """Tests of the trained model, by the suffix that is added to the task's name."""
        return {"": self}


def check_disjoint(task: Task, *, trained: int, tested: int, key: str) -> None:
    """Refuse a task with so few sequences that test sequences may occur in training.

    Sequences are drawn independently and uniformly, so the probability that any test sequence was trained on is at most
    trained · tested / (number of sequences).

    Args:
        trained: number of training sequences.
        tested: number of test sequences.
        key: key of the task in the configuration.

    Raises:
        UserError: the bound exceeds OVERLAP.
    """
    needed = log2(trained * tested / OVERLAP)
    if task.bits < needed:
        hint = (
            f"there are 2^{task.bits:.0f}, but training on {trained:,} and testing on {tested:,} needs 2^{needed:.0f};"
            " make the task larger"
        )
        raise UserError("too few distinct sequences", file=key, hint=hint)


def distinct(generator: np.random.Generator, n: int, of: int, count: int) -> np.ndarray:
    """Draw ``n`` rows of ``count`` different numbers below ``of``, in random order; (n, count) int64."""
    return generator.permuted(np.tile(np.arange(of), (n, 1)), axis=1)[:, :count]


def no_questions(n: int, seq_len: int) -> np.ndarray:
    """Targets of ``n`` sequences without questions, to be filled in; (n, seq_len) int64."""
    return np.full((n, seq_len), IGNORE, dtype=np.int64)


def log2_arrangements(of: int, count: int) -> float:
    """log2 of of!/(of−count)!, the number of ordered selections of ``count`` items out of ``of``."""
    return (lgamma(of + 1) - lgamma(of - count + 1)) / log(2)


def log2_subsets(of: int, count: int) -> float:
    """log2 of the number of subsets of ``count`` items out of ``of``."""
    return log2_arrangements(of, count) - log2_arrangements(count, count)


def at_least(**sizes: tuple[int, int]) -> None:
    """Check sizes, given as (size, smallest allowed size) by name.

    Raises:
        ValueError: a size is too small.
    """
    for name, (size, smallest) in sizes.items():
        if size < smallest:
            raise ValueError(f"{name}={size} must be at least {smallest}")
