"""How long a run would take here, from earlier runs of like size that did the same work on the same device."""

import math
import socket
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllm.runs.listing import ListedRun
from tinyllm.studio.report import Figures, Work

LIKE = 4.0
"""Runs whose cost per token differs by less than this factor are of like size."""
MOST_USED = 3


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """The speed of an earlier run on this machine."""

    path: Path
    work: Work
    flops_per_token: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How long a run would take, and from which runs that is concluded."""

    seconds: float
    runs: list[PastRun]


def past_runs(runs: Iterable[ListedRun]) -> list[PastRun]:
    """The speeds of those runs that recorded one on this machine."""
    past, here = [], socket.gethostname()
    for run in runs:
        flops, speed = (_positive(run.get(key)) for key in ("flops_per_token", "tokens/s"))
        work = _work_of(run)
        if flops and speed and work is not None and run.get("host") == here:
            past.append(PastRun(path=run.path, work=work, flops_per_token=flops, tokens_per_s=speed))
    return past


def _work_of(run: ListedRun) -> Work | None:
    """What a run did on what; None if it recorded none."""
    # Runs from before there was a choice, or several ranks, trained on the next token alone.
    objective, ranks = run.values.get("objective", "next_token"), run.values.get("world_size") or 1
    device, precision = run.values.get("device"), run.values.get("precision")
    if not all(isinstance(name, str) for name in (objective, device, precision)) or type(ranks) is not int:
        return None
    return Work(objective=str(objective), precision=str(precision), device=str(device), ranks=ranks)


def expected(figures: Figures, past: Sequence[PastRun]) -> Expectation | None:
    """The expected duration of training alone, without evaluations; None if no such run was made here.

    Only runs with the same objective, precision, device and number of ranks count: a token that is generated first, or
    computed elsewhere, takes other times. Among them the cost per token decides which are alike: the nearest are taken,
    and the median of their FLOP/s.
    """
    if figures.flops is None:
        return None
    alike = _alike([run for run in past if run.work == figures.work], figures.flops_per_token)
    return Expectation(seconds=figures.flops / _flops_per_s(alike), runs=alike) if alike else None


def expected_seconds(
    *, objective: str, flops_per_token: float, flops: float | None, runs: Iterable[ListedRun]
) -> float | None:
    """The same for a run of which only the objective is known; it is taken to have the precision, device and ranks of
    the newest such run here. None if nothing is known.

    Args:
        objective: the chosen option.
        flops_per_token: of training.
        flops: of the whole run.
        runs: all earlier runs, the newest first.
    """
    past = [run for run in past_runs(runs) if run.work.objective == objective]
    alike = _alike([run for run in past if run.work == past[0].work], flops_per_token)
    return None if flops is None or not alike else flops / _flops_per_s(alike)


def _alike(past: Iterable[PastRun], flops_per_token: float) -> list[PastRun]:
    """The runs of like size, the nearest: the cost per token decides."""

    def distance(run: PastRun) -> float:
        return abs(math.log(run.flops_per_token / flops_per_token))

    return sorted((run for run in past if distance(run) < math.log(LIKE)), key=distance)[:MOST_USED]


def _flops_per_s(runs: Iterable[PastRun]) -> float:
    return statistics.median(run.flops_per_token * run.tokens_per_s for run in runs)


def _positive(value: object) -> float:
    """A number that a run recorded; 0 if it is none."""
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0
