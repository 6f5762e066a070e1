"""Shows samples as they come: the first while it grows, each further one once the one before it is whole."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from tinyllm.inference.generator import Piece


class Printer:
    """Writes prompt and text to ``out``, everything else to ``notes``.

    Args:
        prompts: each is shown before its samples, which come prompt after prompt.
        n_samples: how many there are of each.
        clean: applied to all text; for a terminal, which must not obey what a model writes.
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

    def show(self, pieces: Iterable[Piece]) -> None:
        """Consume the stream. Whatever ends it, the output ends with a line end."""
        try:
            self._begin(0)
            for piece in pieces:
                self.tokens += 1
                text = piece.prompt * self.n_samples + piece.sample
                self.texts[text] += piece.text
                self.ended[text] = piece.ended
                if text == self._shown:
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
            if following == len(self.texts):
                return
            self._end_line()
            self._write("\n")
            self._begin(following)
            self._write(self.texts[following])

    def _begin(self, text: int) -> None:
        self._shown = text
        prompt, sample = divmod(text, self.n_samples)
        whose = [f"prompt {prompt + 1} of {len(self.prompts)}"] if len(self.prompts) > 1 else []
        whose += [f"sample {sample + 1} of {self.n_samples}"] if self.n_samples > 1 else []
        if whose:
            print(", ".join(whose), file=self.notes, flush=True)
        self._write(self.prompts[prompt])

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self.out.write(self.clean(text))
            self.out.flush()
