"""How many seeds a comparison needs, from a pilot.

The rule was chosen by simulation (``tests/studies/compare/test_seed_planning.py``):

- The pilot's seeds are not among those of the comparison. A paired t test over all of them, the pilot's included, is
  wrong, for a pilot that happens to spread little stops early and counts as proof of itself: it calls identical arms
  different in up to 9 % of studies with a pilot of 3 and 7 % with one of 6, where 5 % are meant. (Stein 1945, A
  two-sample test for a linear hypothesis whose power is independent of the variance, keeps the pilot and its level by
  testing with the pilot's spread for ever, which leaves a table of runs that no ordinary test agrees with.)
- The standard deviation of a few differences is uncertain, and taken at its face value it gives a power of 0.7, not
  0.8. It is made larger by what restores the power on the average over pilots (Julious and Owen 2006, Sample size
  calculations for clinical studies allowing for uncertainty about the variance, Pharmaceutical Statistics 5).
- With ``PILOT`` pairs that factor is 1.25. Fewer pairs cost more seeds afterwards than they save.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import nct, norm

from tinyllm.studies.compare.statistics import LEVEL, POWER, mean_and_sd, seeds_needed
from tinyllm.studies.compare.verdicts import rounded

PILOT = 5
"""Seeds of the pilot."""
SEED_OFFSET = 2_000_003
"""What is added to the seed of the pilot, so that none of the seeds that count is in it."""
FEWEST = 3
"""Seeds of a comparison, however little a pilot spreads."""
MOST = 100
"""Seeds that are taken without having been asked for by number."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many seeds to train, none of them the pilot's."""

    seeds: int
    needed: int | None
    """Without the limits; None: the pilot does not tell."""
    sentence: str
    """For the report."""


def plan(
    differences: Sequence[float],
    *,
    effect: float,
    arms: int,
    seconds_per_run: float,
    max_minutes: float | None,
    unit: str = "",
) -> Plan:
    """How many seeds show ``effect`` with a power of ``POWER``, and what they cost.

    Args:
        differences: of the pilot, seed by seed. Their mean is of no account: a number of seeds that depended on it
            would be a second look at the answer.
        effect: the difference that is worth seeing.
        arms: with the reference; each other one is a comparison that Holm's correction counts.
        seconds_per_run: of the clock, with what runs at once taken into account.
        max_minutes: for pilot and comparison together; None: no limit.
        unit: of the effect, for the sentence.
    """
    tests = max(1, arms - 1)
    _, sd = mean_and_sd(differences) if differences else (0.0, None)
    if sd is None:
        sentence = f"the pilot left fewer than two pairs to measure the noise on; {FEWEST} seeds are taken"
        return Plan(seeds=FEWEST, needed=None, sentence=sentence)
    needed = max(FEWEST, seeds_after_pilot(sd, len(differences), effect=effect, level=LEVEL / tests))
    limit, limited_by = _limit(needed, arms, len(differences), seconds_per_run, max_minutes)
    effect_text = f"{effect:g} {unit}".strip()
    of_all = f" for {tests} comparisons together" if tests > 1 else ""
    sentence = (
        f"the differences of {len(differences)} pilot seeds have a standard deviation of {rounded(sd, sd)}; "
        f"{needed} further seeds are needed to see {effect_text} with a power of {POWER:g} "
        f"(two-sided {100 * LEVEL:g} %{of_all}), {needed * arms} runs in {duration(needed * arms * seconds_per_run)}"
    )
    if limit < needed:
        cost = duration(limit * arms * seconds_per_run)
        sentence += f"; {limited_by} allows {limit} ({cost}), so an effect of that size may stay unseen"
    return Plan(seeds=min(needed, limit), needed=needed, sentence=sentence)


def seeds_after_pilot(sd: float, pilot: int, *, effect: float, level: float = LEVEL) -> int:
    """Seeds, the pilot's not among them, for a power of ``POWER`` on the average over pilots.

    Args:
        sd: of the pilot's ``pilot`` differences.
        effect: the difference to see.
        level: two-sided.
    """
    if sd == 0:
        return 2
    return seeds_needed(sd * inflation(pilot, level), effect=effect, level=level)


def inflation(pilot: int, level: float = LEVEL) -> float:
    """What the sd of ``pilot`` differences is multiplied with (Julious and Owen 2006).

    With many seeds the power given a pilot is Φ(√n·effect/σ - z) at the level's quantile z. For n = k·s²/effect², and
    s²/σ² = χ²/ν with ν = pilot - 1, its average is P((Z + z)/√(χ²/ν) < √k): √k is a quantile of noncentral t.
    """
    z = norm.isf(level / 2)
    return float(nct.ppf(POWER, pilot - 1, z) / (z + norm.ppf(POWER)))


def _limit(needed: int, arms: int, pilot: int, seconds_per_run: float, max_minutes: float | None) -> tuple[int, str]:
    """The most seeds that may be taken, and what says so."""
    if max_minutes is not None and seconds_per_run > 0:
        left = 60 * max_minutes - 2 * pilot * seconds_per_run
        affordable = max(1, math.floor(left / (arms * seconds_per_run)))
        if affordable < min(needed, MOST):
            return affordable, f"max_minutes={max_minutes:g}"
    return MOST, f"seeds=auto, which stops at {MOST} unless seeds gives a number,"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return (
                f"about {seconds / size:.2g} {name}" if seconds < 100 * size else f"about {seconds / size:.0f} {name}"
            )
    return f"about {seconds:.0f} s"
