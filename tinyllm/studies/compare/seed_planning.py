"""Seed planning: the number of seeds that a comparison needs, from a pilot.

The rule was chosen by simulation (``tests/studies/compare/test_seed_planning.py``):

- The pilot's seeds are not reused in the comparison. A paired t test that includes them has the wrong level: a pilot
  with a small spread by chance stops the study early and then counts as evidence. Identical arms are called different
  in up to 9 % of studies with a pilot of 3 seeds and 7 % with one of 6, instead of 5 %. (Stein 1945, A two-sample test
  for a linear hypothesis whose power is independent of the variance, reuses the pilot at the right level by testing
  with the pilot's spread only; the result contradicts an ordinary test on the same runs.)
- The standard deviation of a few differences is uncertain; taken as exact, it gives a power of 0.7 instead of 0.8. It
  is inflated by the factor that restores the power on average over pilots (Julious and Owen 2006, Sample size
  calculations for clinical studies allowing for uncertainty about the variance, Pharmaceutical Statistics 5).
- With ``PILOT`` pairs that factor is 1.25. A smaller pilot costs more seeds afterwards than it saves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import nct, norm

from tinyllm.studies.compare.statistics import LEVEL, POWER, mean_and_sd, seeds_needed
from tinyllm.studies.compare.verdicts import rounded

PILOT = 5
"""Number of seeds in the pilot."""
SEED_OFFSET = 2_000_003
"""Added to the seed for the pilot, so that it shares no seed with the comparison."""
FEWEST = 3
"""Smallest number of seeds, however small the spread of the pilot."""
MOST = 100
"""Largest number of seeds that ``seeds=auto`` chooses."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The number of seeds to train, in addition to the pilot."""

    seeds: int
    needed: int | None
    """The number without limits; None: the pilot measured no spread."""
    sentence: str
    """The explanation for the report."""


def plan(
    differences: Sequence[float],
    *,
    effect: float,
    arms: int,
    seconds_per_run: float,
    max_minutes: float | None,
    unit: str = "",
) -> Plan:
    """The number of seeds that detect ``effect`` with a power of ``POWER``, and their cost.

    Args:
        differences: the differences in the pilot, by seed. Only their spread is used: a number of seeds that depended
            on their mean would bias the comparison.
        effect: the smallest difference worth detecting.
        arms: number of arms with the reference; each other arm is one comparison for Holm's correction.
        seconds_per_run: wall-clock time per run; with parallel runs, divided by their number.
        max_minutes: limit for pilot and comparison together; None: no limit.
        unit: unit of the effect, for the sentence.
    """
    tests = max(1, arms - 1)
    _, sd = mean_and_sd(differences) if differences else (0.0, None)
    if sd is None:
        sentence = f"the pilot left fewer than two pairs, too few to measure the noise; training {FEWEST} seeds"
        return Plan(seeds=FEWEST, needed=None, sentence=sentence)
    needed = max(FEWEST, seeds_after_pilot(sd, len(differences), effect=effect, level=LEVEL / tests))
    limit, limited_by = _limit(needed, arms, len(differences), seconds_per_run, max_minutes)
    effect_text = f"{effect:g} {unit}".strip()
    of_all = f" for {tests} comparisons together" if tests > 1 else ""
    sentence = (
        f"the differences of {len(differences)} pilot seeds have a standard deviation of {rounded(sd, sd)}; "
        f"{needed} further seeds are needed to detect {effect_text} with a power of {POWER:g} "
        f"(two-sided {100 * LEVEL:g} %{of_all}), {needed * arms} runs in {duration(needed * arms * seconds_per_run)}"
    )
    if limit < needed:
        cost = duration(limit * arms * seconds_per_run)
        sentence += f"; {limited_by} allows {limit} ({cost}), so an effect of that size may go undetected"
    return Plan(seeds=min(needed, limit), needed=needed, sentence=sentence)


def seeds_after_pilot(sd: float, pilot: int, *, effect: float, level: float = LEVEL) -> int:
    """The number of seeds, without the pilot's, for a power of ``POWER`` on average over pilots.

    Args:
        sd: standard deviation of the pilot's differences.
        pilot: number of these differences.
        effect: the difference to detect.
        level: two-sided significance level.
    """
    if sd == 0:
        return 2
    return seeds_needed(sd * inflation(pilot, level), effect=effect, level=level)


def inflation(pilot: int, level: float = LEVEL) -> float:
    """The factor by which to inflate the standard deviation of ``pilot`` differences (Julious and Owen 2006).

    For many seeds, the power given a pilot is Φ(√n·effect/σ - z), where z is the quantile of the level. With
    n = k·s²/effect² and s²/σ² = χ²/ν, ν = pilot - 1, its mean is P((Z + z)/√(χ²/ν) < √k), so √k is a quantile of the
    noncentral t distribution.
    """
    z = norm.isf(level / 2)
    return float(nct.ppf(POWER, pilot - 1, z) / (z + norm.ppf(POWER)))


def _limit(needed: int, arms: int, pilot: int, seconds_per_run: float, max_minutes: float | None) -> tuple[int, str]:
    """The largest allowed number of seeds, and what limits it."""
    if max_minutes is not None and seconds_per_run > 0:
        left = 60 * max_minutes - 2 * pilot * seconds_per_run
        affordable = max(1, math.floor(left / (arms * seconds_per_run)))
        if affordable < min(needed, MOST):
            return affordable, f"max_minutes={max_minutes:g}"
    return MOST, f"seeds=auto, which stops at {MOST} unless seeds gives a number,"


def duration(seconds: float) -> str:
    """A duration as text, in the largest unit that gives at least 2: ``about 2.5 min``."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return (
                f"about {seconds / size:.2g} {name}" if seconds < 100 * size else f"about {seconds / size:.0f} {name}"
            )
    return f"about {seconds:.0f} s"
