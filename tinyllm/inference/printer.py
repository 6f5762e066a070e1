"""Shows samples as they come: the first while it grows, each further one once the one before it is whole."""

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from tinyllm.inference.generator import Piece


class Printer:
    """Writes prompt and text to ``out``, everything else to ``notes``.

    Args:
        prompt: shown before each sample.
        n_samples: how many there are.
        clean: applied to all text; for a terminal, which must not obey what a model writes.
    """

    def __init__(
        self,
        *,
        prompt: str,
        n_samples: int,
        clean: Callable[[str], str] = str,
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self.clean = clean
        self.out, self.notes = out or sys.stdout, notes or sys.stderr
        self.prompt, self.n_samples = prompt, n_samples
        self.texts = [""] * n_samples
        self.ended = [False] * n_samples
        self.tokens = 0
        self._shown: int | None = None
        self._last = "\n"

    def show(self, pieces: Iterable[Piece]) -> None:
        """Consume the stream. Whatever ends it, the output ends with a line end."""
        try:
            self._begin(0)
            for piece in pieces:
                self.tokens += 1
                self.texts[piece.sample] += piece.text
                self.ended[piece.sample] = piece.ended
                if piece.sample == self._shown:
                    self._write(piece.text)
                    if piece.ended:
                        self._go_on()
        finally:
            self._end_line()

    def _go_on(self) -> None:
        """After the shown sample has ended: the following ones that have ended too, and what there is of the
        next."""
        while self._shown is not None and self.ended[self._shown]:
            following = self._shown + 1
            if following == self.n_samples:
                return
            self._end_line()
            self._write("\n")
            self._begin(following)
            self._write(self.texts[following])

    def _begin(self, sample: int) -> None:
        self._shown = sample
        if self.n_samples > 1:
            print(f"sample {sample + 1} of {self.n_samples}", file=self.notes, flush=True)
        self._write(self.prompt)

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self.out.write(self.clean(text))
            self.out.flush()
