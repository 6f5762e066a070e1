"""What is measured once and kept, so that the same study gives the same report: speeds, and accuracies of probes."""

import time
from pathlib import Path
from typing import Any

from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.utils.files import read_json, write_json

MEASURED = "measured.json"
DECODED = 128
"""Tokens that are generated to measure the speed of generation, where the context holds as many."""
ROUNDS = 3


class Measured:
    """Figures by kind and by what they belong to, in a file."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / MEASURED
        self._known: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self._known = read_json(self.file)
            except UserError as error:
                hint = f"{error.hint}; take the file away to measure again"
                raise UserError(error.what, file=self.file, hint=hint) from error

    def get(self, kind: str, of: str) -> Any:
        """What was measured; None: nothing yet."""
        return self._known.get(kind, {}).get(of)

    def put(self, kind: str, of: str, value: Any) -> None:
        """Keep what was measured."""
        self._known.setdefault(kind, {})[of] = value
        write_json(self.file, {name: dict(sorted(known.items())) for name, known in sorted(self._known.items())})


def decode_speed(run_dir: Path, *, allow: frozenset[Option]) -> float:
    """Tokens per second of one sequence with the greedy choice, the best of a few rounds, the first token left out.

    0: the model, hardly trained, ends its text at once.
    """
    from tinyllm.inference.generator import stream_text
    from tinyllm.inference.sampling import Sampling
    from tinyllm.programs.load_model import load

    model, tokenizer = load(run_dir, allow=allow)
    tokens = min(DECODED, model.max_seq_len // 2)
    best = 0.0
    for _ in range(ROUNDS):
        pieces = stream_text(model, tokenizer, max_new_tokens=tokens, sampling=Sampling(temperature=0.0))
        next(pieces, None)
        begin = time.perf_counter()
        made = sum(1 for _ in pieces)
        seconds = time.perf_counter() - begin
        best = max(best, made / seconds) if seconds > 0 else best
    return best
