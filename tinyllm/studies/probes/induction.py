"""Induction: what came next the last time."""

from dataclasses import dataclass
from math import log2

import numpy as np

from tinyllm.studies.probes.task import Drawn, Task, at_least, distinct, log2_arrangements, nothing_asked


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """A random text, then passages of it: within a passage, the next id is asked.

    ``a b c d e f | d e f | b c d``: [A][B] … [A] → [B], which takes an induction head (Olsson et al. 2022). Passages
    begin at random places of the text, so no fixed distance leads to the answer, and ids have no kinds that would tell
    questions from answers. The text has no id twice and a separator stands before each passage, so an id that is asked
    about was followed by one other id only, the answer.

    Its chance is 1/(text − passage + 1): the place of an answer in the text is as likely to be any of so many.

    Args:
        text: ids of the text.
        passage: ids of a passage; all but its last are questions.
        passages: how many there are.
        alphabet: how many different ids a text is drawn from.

    Raises:
        ValueError: sizes that do not go together.
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

    def draw(self, n: int, generator: np.random.Generator) -> Drawn:
        separator = self.alphabet
        text = distinct(generator, n, self.alphabet, self.text)
        starts = generator.integers(self.text - self.passage + 1, size=(n, self.passages, 1))
        places = (starts + np.arange(self.passage)).reshape(n, -1)
        passages = np.take_along_axis(text, places, axis=1).reshape(n, self.passages, self.passage)
        inputs = np.full((n, self.passages, 1 + self.passage), separator, dtype=np.int64)
        inputs[:, :, 1:] = passages
        asked = np.full_like(inputs, nothing_asked(1, 1)[0, 0])
        asked[:, :, 1:-1] = passages[:, :, 1:]
        targets = nothing_asked(n, self.seq_len)
        targets[:, self.text :] = asked.reshape(n, -1)
        return np.concatenate([text, inputs.reshape(n, -1)], axis=1), targets

    def longer(self, factor: int) -> "Induction":
        return Induction(
            text=self.text * factor,
            passage=self.passage,
            passages=self.passages * factor,
            alphabet=self.alphabet,
        )
