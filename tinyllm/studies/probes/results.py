"""Results of probes, and the cache that keeps them on disk."""

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from statsmodels.stats.proportion import proportion_confint

from tinyllm.errors import UserError
from tinyllm.runs.provenance import code_fingerprint
from tinyllm.utils.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of one trained model on one test."""

    accuracy: float
    """Share of the questions answered correctly."""
    low: float
    high: float
    """Bounds of the 95 % interval for the same trained model on other sequences of the task; see :func:`score`."""
    chance: float
    sequences: int
    questions: int
    """Number of questions in all sequences."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Result of one composition trained on one task with one seed."""

    task: str
    seed: int
    scores: dict[str, Score]
    """Scores by test: the task's name, with a suffix such as ``@2x`` if it is tested at several lengths."""
    steps: int
    parameters: int
    """Number of parameters without embeddings, whose size depends on the task."""
    seconds: float
    """Duration of training and tests."""

    def line(self) -> str:
        """Seed, accuracies and duration, in one line."""
        accuracies = ", ".join(f"{test} {score.accuracy:.3f}" for test, score in self.scores.items())
        return f"seed {self.seed}: {accuracies} ({self.seconds:.0f} s)"


def score(shares: Sequence[float], *, chance: float, questions: int) -> Score:
    """Accuracy over sequences with equally many questions each, with Wilson's 95 % interval.

    The answers within a sequence may be correlated in any way, so the interval treats each sequence as one trial: that
    is the worst case, in which all of its questions are answered correctly or wrongly together.

    Args:
        shares: share of correct answers, by sequence.
        chance: accuracy of guessing.
        questions: number of questions in a sequence.
    """
    accuracy = statistics.fmean(shares)
    low, high = proportion_confint(accuracy * len(shares), len(shares), alpha=0.05, method="wilson")
    # Rounding can put the bounds slightly outside [0, 1].
    return Score(
        accuracy=accuracy,
        low=max(0.0, float(low)),
        high=min(1.0, float(high)),
        chance=chance,
        sequences=len(shares),
        questions=questions * len(shares),
    )


def fingerprint(settings: Mapping[str, Any], *, extra: Iterable[Path] = ()) -> str:
    """SHA-256 of everything that determines a result: settings, tinyllm's code, and the source files ``extra``."""
    whole = {
        "settings": settings,
        "code": [code_fingerprint(), own_code()],
        "extra": sorted(_digest(path) for path in extra),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@cache
def own_code() -> str:
    """SHA-256 of the source files of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class ResultCache:
    """A directory of results, one JSON file each, looked up by their fingerprint.

    Raises:
        UserError: the directory cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = str(error.strerror)
            raise UserError("the directory cannot be created", key="out", value=path, hint=hint) from error

    def find(self, task: str, seed: int, fingerprint: str) -> Probe | None:
        """The result with this fingerprint; None if there is no readable one."""
        try:
            content = read_json(self._file(task, seed, fingerprint))
            if content.pop("fingerprint") != fingerprint:
                return None
            del content["settings"]
            scores = {test: Score(**score) for test, score in content.pop("scores").items()}
            return Probe(**content, scores=scores)
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, probe: Probe, settings: Mapping[str, Any], fingerprint: str) -> None:
        """Store a result.

        Raises:
            UserError: the file cannot be written.
        """
        content = asdict(probe) | {"fingerprint": fingerprint, "settings": settings}
        write_json(self._file(probe.task, probe.seed, fingerprint), content)

    def _file(self, task: str, seed: int, fingerprint: str) -> Path:
        return self.path / f"{task}_s{seed}_{fingerprint[:12]}.json"
