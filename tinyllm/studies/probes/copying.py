"""Selective copying."""

from dataclasses import dataclass

import numpy as np

from tinyllm.studies.probes.task import Drawn, Task, at_least, distinct, log2_arrangements, log2_subsets, nothing_asked


@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """Symbols among blanks, then as many markers: at the i-th marker the i-th symbol is asked.

    Jing et al. 2019 (the denoise task) and Gu & Dao 2023 ("Mamba", §3.1): the gaps are random, so fixed distances are
    of no use, and what a marker asks for is found by order alone. Unlike there, a sequence has no symbol twice.

    Its chance is 1/symbols: whoever answers with one of the symbols that were shown, of any one place in their order,
    is right once in each sequence.

    Args:
        symbols: how many are to be copied.
        alphabet: how many different symbols there are.
        length: of the part with symbols and blanks; the markers follow.

    Raises:
        ValueError: sizes that do not go together.
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

    def draw(self, n: int, generator: np.random.Generator) -> Drawn:
        blank, marker = self.alphabet, self.alphabet + 1
        symbols = distinct(generator, n, self.alphabet, self.symbols)
        places = np.sort(distinct(generator, n, self.length, self.symbols), axis=1)
        inputs = np.full((n, self.seq_len), blank, dtype=np.int64)
        inputs[:, self.length :] = marker
        np.put_along_axis(inputs, places, symbols, axis=1)
        targets = nothing_asked(n, self.seq_len)
        targets[:, self.length :] = symbols
        return inputs, targets

    def longer(self, factor: int) -> "Copying":
        return Copying(symbols=self.symbols * factor, alphabet=self.alphabet, length=self.length * factor)
