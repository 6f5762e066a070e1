"""Induction: predict the token that followed last time."""

from dataclasses import dataclass
from math import log2

import numpy as np

from tinyllm.studies.probes.task import Sequences, Task, at_least, distinct, log2_arrangements, no_questions


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """A random text, then passages of it; within a passage, each token asks for the next one.

    ``a b c d e f | d e f | b c d``: [A][B] … [A] → [B], which takes an induction head (Olsson et al. 2022). Passages
    start at random positions of the text, so no fixed distance leads to the answer, and nothing about an id tells
    questions from answers. No id occurs twice in the text, and a separator precedes each passage, so every id in a
    question has only ever been followed by the answer.

    Chance is 1/(text − passage + 1): the position of an answer in the text is uniform over that many positions.

    Args:
        text: length of the text.
        passage: length of a passage; all of its tokens but the last are questions.
        passages: number of passages.
        alphabet: size of the vocabulary of the text.

    Raises:
        ValueError: the sizes do not fit together.
    """

    text: int
    passage: int
    passages: int
    alphabet: int

    def __post_init__(self) -> None:
        at_least(
            passage=(self.passage, 2),
            passages=(self.passages, 1),
            text=(self.text, self.passage),
            alphabet=(self.alphabet, self.text),
        )

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 1

    @property
    def seq_len(self) -> int:
        return self.text + self.passages * (1 + self.passage)

    @property
    def questions(self) -> int:
        return self.passages * (self.passage - 1)

    @property
    def chance(self) -> float:
        return 1 / (self.text - self.passage + 1)

    @property
    def bits(self) -> float:
        return log2_arrangements(self.alphabet, self.text) + self.passages * log2(self.text - self.passage + 1)

    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        separator = self.alphabet
        text = distinct(generator, n, self.alphabet, self.text)
        starts = generator.integers(self.text - self.passage + 1, size=(n, self.passages, 1))
        places = (starts + np.arange(self.passage)).reshape(n, -1)
        passages = np.take_along_axis(text, places, axis=1).reshape(n, self.passages, self.passage)
        inputs = np.full((n, self.passages, 1 + self.passage), separator, dtype=np.int64)
        inputs[:, :, 1:] = passages
        questions = np.full_like(inputs, no_questions(1, 1)[0, 0])
        questions[:, :, 1:-1] = passages[:, :, 1:]
        targets = no_questions(n, self.seq_len)
        targets[:, self.text :] = questions.reshape(n, -1)
        return np.concatenate([text, inputs.reshape(n, -1)], axis=1), targets

    def longer(self, factor: int) -> "Induction":
        return Induction(
            text=self.text * factor,
            passage=self.passage,
            passages=self.passages * factor,
            alphabet=self.alphabet,
        )
