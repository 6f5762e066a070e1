"""What a probe found, and where it is kept."""

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.provenance import code_fingerprint
from tinyllm.utils.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Score:
    """The accuracy of one trained model on one test."""

    accuracy: float
    """Share of the questions that were answered rightly."""
    low: float
    high: float
    """95 % interval for other sequences of the same task and the same trained model, see :func:`score`."""
    chance: float
    sequences: int
    questions: int
    """In all sequences together."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One composition trained on one task with one seed."""

    task: str
    seed: int
    scores: dict[str, Score]
    """By test: the task's name, with ``@2x`` and so on where it is tested at several lengths."""
    steps: int
    parameters: int
    """Without look-up tables, whose size follows from the task's."""
    seconds: float
    """Of training and tests."""

    def line(self) -> str:
        """What was found, in a line."""
        shown = ", ".join(f"{name} {one.accuracy:.3f}" for name, one in self.scores.items())
        return f"seed {self.seed}: {shown} ({self.seconds:.0f} s)"


def score(shares: Sequence[float], *, chance: float, questions: int) -> Score:
    """The accuracy over sequences with equally many questions.

    The interval is Wilson's, as if all questions of a sequence were answered rightly or wrongly together: they may
    hang together in any way, and with as many independent ones as sequences the interval is never too narrow for it.

    Args:
        shares: of each sequence, the share of rightly answered questions.
        questions: of a sequence.
    """
    from statsmodels.stats.proportion import proportion_confint

    accuracy = statistics.fmean(shares)
    low, high = proportion_confint(accuracy * len(shares), len(shares), alpha=0.05, method="wilson")
    return Score(
        accuracy=accuracy,
        low=max(0.0, float(low)),
        high=min(1.0, float(high)),
        chance=chance,
        sequences=len(shares),
        questions=questions * len(shares),
    )


def fingerprint(settings: Mapping[str, Any], *, extra: Iterable[Path] = ()) -> str:
    """sha256 over everything that a probe's result follows from: its settings, our code and further source files."""
    whole = {
        "settings": settings,
        "code": [code_fingerprint(), own_code()],
        "extra": sorted(_digest(path) for path in extra),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@cache
def own_code() -> str:
    """sha256 over the source files of the tasks and of what trains on them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Shelf:
    """A directory with the results of probes, one file each; a file is found again by what its result follows from.

    Raises:
        UserError: the directory cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError("the directory cannot be made", key="out", value=path, hint=str(error.strerror)) from error

    def find(self, task: str, seed: int, fingerprint: str) -> Probe | None:
        """The result of that fingerprint; None: there is none that can be read."""
        try:
            content = read_json(self._file(task, seed, fingerprint))
            if content.pop("fingerprint") != fingerprint:
                return None
            del content["settings"]
            scores = {name: Score(**one) for name, one in content.pop("scores").items()}
            return Probe(**content, scores=scores)
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, probe: Probe, settings: Mapping[str, Any], fingerprint: str) -> None:
        """Keep a result.

        Raises:
            UserError: it cannot be written.
        """
        content = asdict(probe) | {"fingerprint": fingerprint, "settings": settings}
        write_json(self._file(probe.task, probe.seed, fingerprint), content)

    def _file(self, task: str, seed: int, fingerprint: str) -> Path:
        return self.path / f"{task}_s{seed}_{fingerprint[:12]}.json"
