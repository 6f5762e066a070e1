"""What a synthetic task is: sequences of ids with questions whose answers follow from what stands before them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import lgamma, log, log2

import numpy as np

from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE

Drawn = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, (n, seq_len) int64 each; the target is IGNORE where nothing is asked."""

OVERLAP = 1e-6
"""The largest probability that a sequence of the test was also trained on."""


class Task(ABC):
    """A family of sequences of one length, each as likely as any other.

    Nothing is asked of a position by its target alone: what the model has to predict there follows from the inputs up
    to and including it, and from nothing else.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """Positions of a sequence."""

    @property
    @abstractmethod
    def questions(self) -> int:
        """Positions of a sequence at which something is asked."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The highest accuracy without relating a question to what stands before it; see each task."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """Logarithm to base 2 of the number of sequences."""

    @abstractmethod
    def draw(self, n: int, generator: np.random.Generator) -> Drawn:
        """``n`` independent sequences."""

    def longer(self, factor: int) -> "Task":
        """The same task ``factor`` times as long, over the same ids.

        Raises:
            UserError: it has no other length.
        """
        raise UserError("a task of one length", file=type(self).__name__, hint="it needs a method longer(factor)")

    def tests(self) -> Mapping[str, "Task"]:
        """What the trained model is tested on, by what is added to the task's name."""
        return {"": self}


def check_disjoint(task: Task, *, trained: int, tested: int, key: str) -> None:
    """Refuse a task so small that its test would be known from training.

    Sequences are drawn independently and alike, so the probability that any of the tested is among the trained is at
    most trained · tested / their number.

    Args:
        trained, tested: how many sequences.
        key: where the task stands in the configuration.

    Raises:
        UserError: the bound is above OVERLAP.
    """
    needed = log2(trained * tested / OVERLAP)
    if task.bits < needed:
        have = f"there are 2^{task.bits:.0f} of them"
        hint = f"{have}, and {trained:,} to train and {tested:,} to test on need 2^{needed:.0f}; make the task larger"
        raise UserError("too few different sequences", file=key, hint=hint)


def distinct(generator: np.random.Generator, n: int, of: int, count: int) -> np.ndarray:
    """``n`` rows of ``count`` different numbers below ``of``, in every order alike; (n, count) int64."""
    return generator.permuted(np.tile(np.arange(of), (n, 1)), axis=1)[:, :count]


def nothing_asked(n: int, seq_len: int) -> np.ndarray:
    """Targets of ``n`` sequences at which nothing is asked yet."""
    return np.full((n, seq_len), IGNORE, dtype=np.int64)


def log2_arrangements(of: int, count: int) -> float:
    """Logarithm of of!/(of−count)!, the number of rows of ``count`` different things of ``of``."""
    return (lgamma(of + 1) - lgamma(of - count + 1)) / log(2)


def log2_subsets(of: int, count: int) -> float:
    """Logarithm of the number of ways to choose ``count`` of ``of``."""
    return log2_arrangements(of, count) - log2_arrangements(count, count)


def at_least(**sizes: tuple[int, int]) -> None:
    """Check sizes against their smallest values.

    Raises:
        ValueError: one is below.
    """
    for name, (size, smallest) in sizes.items():
        if size < smallest:
            raise ValueError(f"{name}={size} must be at least {smallest}")
