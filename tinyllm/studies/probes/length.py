"""Length generalisation: train on short sequences, test on longer ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinyllm.studies.probes.task import Sequences, Task


@dataclass(frozen=True, kw_only=True)
class Length(Task):
    """Another task, trained at its own length and tested at multiples of it.

    Args:
        task: a task that implements :meth:`Task.longer`.
        factors: lengths of the tests in multiples of the training length.

    Raises:
        ValueError: there is no factor, or one below 1, or the task does not have enough ids for a length.
    """

    task: Task
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) < 1:
            raise ValueError(f"factors={list(self.factors)} must be integers above 0")
        self.tests()  # raises if the task cannot be that long

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    @property
    def seq_len(self) -> int:
        return self.task.seq_len

    @property
    def questions(self) -> int:
        return self.task.questions

    @property
    def chance(self) -> float:
        return self.task.chance

    @property
    def bits(self) -> float:
        return self.task.bits

    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        return self.task.draw(n, generator)

    def tests(self) -> Mapping[str, Task]:
        return {f"@{factor}x": self.task.longer(factor) for factor in sorted(set(self.factors))}
