"""Multi-query associative recall."""

from dataclasses import dataclass
from math import log2

import numpy as np

from tinyllm.studies.probes.task import Sequences, Task, at_least, distinct, log2_arrangements, no_questions


@dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """Key-value pairs, then each key again as a question for its value (MQAR; Arora et al. 2023, "Zoology", §3).

    ``k₁ v₁ k₂ v₂ … kₚ vₚ · · k₂ · k₁ …``: after the pairs come keys and fillers in random order. Keys and values are
    disjoint sets of ids, and all are different within a sequence, so each question has exactly one answer. Unlike in
    the paper, the positions of questions are uniform, and fillers are never keys or values.

    Chance is 1/pairs: always answering with the value of one and the same pair is correct once per sequence.

    Args:
        pairs: number of key-value pairs.
        keys: number of ids that are keys.
        values: number of ids that are values.
        fillers: number of ids that are fillers.
        length: length of a sequence.

    Raises:
        ValueError: the sizes do not fit together.
    """

    pairs: int
    keys: int
    values: int
    fillers: int
    length: int

    def __post_init__(self) -> None:
        at_least(
            pairs=(self.pairs, 1),
            keys=(self.keys, self.pairs),
            values=(self.values, self.pairs),
            fillers=(self.fillers, 1),
            length=(self.length, 3 * self.pairs),
        )

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + self.fillers

    @property
    def seq_len(self) -> int:
        return self.length

    @property
    def questions(self) -> int:
        return self.pairs

    @property
    def chance(self) -> float:
        return 1 / self.pairs

    @property
    def bits(self) -> float:
        chosen = log2_arrangements(self.keys, self.pairs) + log2_arrangements(self.values, self.pairs)
        placed = log2_arrangements(self.length - 2 * self.pairs, self.pairs)
        return chosen + placed + (self.length - 3 * self.pairs) * log2(self.fillers)

    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        shown = 2 * self.pairs
        keys = distinct(generator, n, self.keys, self.pairs)
        values = self.keys + distinct(generator, n, self.values, self.pairs)
        inputs = self.keys + self.values + generator.integers(self.fillers, size=(n, self.length))
        inputs[:, 0:shown:2], inputs[:, 1:shown:2] = keys, values
        places = shown + distinct(generator, n, self.length - shown, self.pairs)
        targets = no_questions(n, self.length)
        np.put_along_axis(inputs, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        return inputs, targets

    def longer(self, factor: int) -> "Recall":
        return Recall(
            pairs=self.pairs * factor,
            keys=self.keys,
            values=self.values,
            fillers=self.fillers,
            length=self.length * factor,
        )
