"""How long a run would take here, from earlier runs of like size on the same device."""

import math
import socket
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllm.runs.listing import ListedRun
from tinyllm.studio.report import Figures

LIKE = 4.0
"""Runs whose cost per token differs by less than this factor are of like size."""
MOST_USED = 3


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """The speed of an earlier run."""

    path: Path
    host: str
    device: str
    flops_per_token: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How long a run would take, and from which runs that is concluded."""

    seconds: float
    runs: list[PastRun]


def past_runs(runs: Iterable[ListedRun]) -> list[PastRun]:
    """The speeds of those runs that recorded one."""
    past = []
    for run in runs:
        host, device = run.get("host"), run.get("device")
        flops, speed = (_positive(run.get(key)) for key in ("flops_per_token", "tokens/s"))
        if flops and speed and isinstance(host, str) and isinstance(device, str):
            past.append(PastRun(path=run.path, host=host, device=device, flops_per_token=flops, tokens_per_s=speed))
    return past


def expected_seconds(*, flops_per_token: float, flops: float | None, runs: Iterable[ListedRun]) -> float | None:
    """The expected duration of training alone on the device that was used last; None if nothing is known.

    Args:
        flops_per_token: of training.
        flops: of the whole run.
        runs: all earlier runs, the newest first.
    """
    here = [run for run in past_runs(runs) if run.host == socket.gethostname()]
    alike = _alike([run for run in here if run.device == here[0].device], flops_per_token)
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


def expected(figures: Figures, past: Sequence[PastRun]) -> Expectation | None:
    """The expected duration of training alone, without evaluations; None if no run of like size was made here.

    The cost per token decides which runs are alike: the nearest are taken, and the median of their FLOP/s.
    """
    if figures.flops is None:
        return None
    here = [run for run in past if run.host == socket.gethostname() and run.device == figures.device]
    alike = _alike(here, figures.flops_per_token)
    if not alike:
        return None
    return Expectation(seconds=figures.flops / _flops_per_s(alike), runs=alike)
