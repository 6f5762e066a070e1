"""Length generalisation: trained on short sequences, tested on long ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinyllm.studies.probes.task import Drawn, Task


@dataclass(frozen=True, kw_only=True)
class Length(Task):
    """Another task, trained at its length and tested at multiples of it.

    Args:
        task: any with ``longer``.
        factors: how many times as long the tests are; 1 is the length of training.

    Raises:
        ValueError: no factor, or one below 1; the task's own when a length does not go together with its ids.
    """

    task: Task
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) < 1:
            raise ValueError(f"factors={list(self.factors)} must be whole numbers above 0")
        self.tests()

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

    def draw(self, n: int, generator: np.random.Generator) -> Drawn:
        return self.task.draw(n, generator)

    def tests(self) -> Mapping[str, Task]:
        return {f"@{factor}x": self.task.longer(factor) for factor in sorted(set(self.factors))}
