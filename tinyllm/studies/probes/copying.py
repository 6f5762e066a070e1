"""Selective copying."""

from dataclasses import dataclass

import numpy as np

from tinyllm.studies.probes.task import (
    Sequences,
    Task,
    at_least,
    distinct,
    log2_arrangements,
    log2_subsets,
    no_questions,
)


@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """Symbols scattered among blanks, then as many markers; the i-th marker asks for the i-th symbol.

    Jing et al. 2019 (denoise task) and Gu & Dao 2023 ("Mamba", §3.1). The gaps are random, so a fixed distance does not
    help: a marker's answer is determined by order alone. Unlike in these papers, no symbol occurs twice in a sequence.

    Chance is 1/symbols: always answering with the symbol of one and the same rank is correct once per sequence.

    Args:
        symbols: number of symbols to copy.
        alphabet: number of different symbols.
        length: length of the part with symbols and blanks; the markers follow it.

    Raises:
        ValueError: the sizes do not fit together.
    """

    symbols: int
    alphabet: int
    length: int

    def __post_init__(self) -> None:
        at_least(symbols=(self.symbols, 1), alphabet=(self.alphabet, self.symbols), length=(self.length, self.symbols))

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    @property
    def seq_len(self) -> int:
        return self.length + self.symbols

    @property
    def questions(self) -> int:
        return self.symbols

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    @property
    def bits(self) -> float:
        return log2_arrangements(self.alphabet, self.symbols) + log2_subsets(self.length, self.symbols)

    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        blank, marker = self.alphabet, self.alphabet + 1
        symbols = distinct(generator, n, self.alphabet, self.symbols)
        places = np.sort(distinct(generator, n, self.length, self.symbols), axis=1)
        inputs = np.full((n, self.seq_len), blank, dtype=np.int64)
        inputs[:, self.length :] = marker
        np.put_along_axis(inputs, places, symbols, axis=1)
        targets = no_questions(n, self.seq_len)
        targets[:, self.length :] = symbols
        return inputs, targets

    def longer(self, factor: int) -> "Copying":
        return Copying(symbols=self.symbols * factor, alphabet=self.alphabet, length=self.length * factor)
