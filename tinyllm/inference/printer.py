"""Printing of streamed samples: one after another, each as it grows."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from tinyllm.inference.generator import GeneratedPiece


class Printer:
    """Prints prompts with their samples to ``out``, and headings to ``notes``.

    All samples grow side by side, but output must not interleave: a sample is held back until the one before it is
    complete.

    Args:
        prompts: each is printed before every one of its samples.
        n_samples: samples of each prompt.
        clean: applied to all text; for a terminal, which must not obey escape sequences that a model writes.
        out: standard output unless given.
        notes: standard error unless given.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        n_samples: int,
        clean: Callable[[str], str] = str,
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self.clean = clean
        self.out, self.notes = out or sys.stdout, notes or sys.stderr
        self.prompts, self.n_samples = list(prompts), n_samples
        self.texts = [""] * (n_samples * len(self.prompts))
        self.ended = [False] * len(self.texts)
        self.tokens = 0
        self._shown: int | None = None
        self._last = "\n"

    def show(self, pieces: Iterable[GeneratedPiece]) -> None:
        """Print a stream until it ends. The output ends with a line end even if the stream raises."""
        try:
            self._begin(0)
            for piece in pieces:
                self.tokens += 1
                index = piece.prompt * self.n_samples + piece.sample
                self.texts[index] += piece.text
                self.ended[index] = piece.ended
                if index == self._shown:
                    self._write(piece.text)
                    if piece.ended:
                        self._advance()
        finally:
            self._end_line()

    def _advance(self) -> None:
        """After the shown sample has ended: print further complete samples and the beginning of the next one."""
        while self._shown is not None and self.ended[self._shown]:
            following = self._shown + 1
            if following == len(self.texts):
                return
            self._end_line()
            self._write("\n")
            self._begin(following)
            self._write(self.texts[following])

    def _begin(self, index: int) -> None:
        self._shown = index
        prompt, sample = divmod(index, self.n_samples)
        heading = [f"prompt {prompt + 1} of {len(self.prompts)}"] if len(self.prompts) > 1 else []
        heading += [f"sample {sample + 1} of {self.n_samples}"] if self.n_samples > 1 else []
        if heading:
            print(", ".join(heading), file=self.notes, flush=True)
        self._write(self.prompts[prompt])

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self.out.write(self.clean(text))
            self.out.flush()
