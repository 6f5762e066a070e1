"""Measurements kept in a file, so that the same study gives the same report: training and generation speeds."""

import time
from pathlib import Path
from typing import Any

from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.inference.generator import stream_text
from tinyllm.inference.sampling import Sampling
from tinyllm.programs.load_model import load
from tinyllm.utils.files import read_json, write_json

MEASURED = "measured.json"
DECODED = 128
"""Tokens to generate for a measurement, if the context is long enough."""
ROUNDS = 3


class Measurements:
    """Measured values by kind and run, in the file ``measured.json`` of a study."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / MEASURED
        self._values: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self._values = read_json(self.file)
            except UserError as error:
                hint = f"{error.hint}; delete the file to measure again"
                raise UserError(error.what, file=self.file, hint=hint) from error

    def get(self, kind: str, run: str) -> Any:
        """The measured value; None: not measured yet."""
        return self._values.get(kind, {}).get(run)

    def put(self, kind: str, run: str, value: Any) -> None:
        """Store a value and write the file."""
        self._values.setdefault(kind, {})[run] = value
        write_json(self.file, {name: dict(sorted(values.items())) for name, values in sorted(self._values.items())})


def decode_speed(run_dir: Path, *, allow: frozenset[Option]) -> float:
    """Greedy decoding speed of one sequence in tokens per second: the best of a few rounds, without the first token.

    0 if a barely trained model ends its text at once.
    """
    model, tokenizer = load(run_dir, allow=allow)
    tokens = min(DECODED, model.max_seq_len // 2)
    best = 0.0
    for _ in range(ROUNDS):
        pieces = stream_text(model, tokenizer, max_new_tokens=tokens, sampling=Sampling(temperature=0.0))
        next(pieces, None)  # includes reading the prompt
        begin = time.perf_counter()
        generated = sum(1 for _ in pieces)
        seconds = time.perf_counter() - begin
        # The best round, not the mean: other processes can only slow it down.
        best = max(best, generated / seconds) if seconds > 0 else best
    return best
