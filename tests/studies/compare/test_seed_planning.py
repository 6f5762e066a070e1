"""Seed planning: the rule and its rejected alternatives in simulated studies, cost and limits."""

import gc
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tinyllm.studies.compare.seed_planning import FEWEST, MOST, PILOT, duration, inflation, plan, seeds_after_pilot
from tinyllm.studies.compare.statistics import detectable_ratio, differences, seeds_needed


@pytest.fixture(autouse=True, scope="module")
def no_collection() -> Iterator[None]:
    """statsmodels runs the garbage collector for every correction, which takes longer than the tests themselves."""
    with mock.patch.object(gc, "collect", lambda: 0):
        yield


def called_different(rng: np.random.Generator, *, studies: int, ratio: float, shift: float) -> tuple[float, float]:
    """The share of studies with a pilot that call the second of two arms different, and their mean number of seeds.

    Args:
        ratio: standard deviation of the differences, in units of the effect.
        shift: the true difference between the arms, in units of the effect.
    """
    seen, sizes = [], []
    for _ in range(studies):
        pilot = (ratio * rng.standard_normal(PILOT) - shift).tolist()
        n = plan(pilot, effect=1.0, arms=2, seconds_per_run=1.0, max_minutes=None).seeds
        base = dict(enumerate(1.8 + 10 * ratio * rng.standard_normal(n)))
        other = {seed: value - shift + ratio * rng.standard_normal() for seed, value in base.items()}
        one = differences({"a": base, "b": other}, reference="a", effect=1.0)[0]
        assert one.p_corrected is not None
        seen.append(one.p_corrected < 0.05 and (shift == 0 or one.mean < 0))
        sizes.append(n)
    return float(np.mean(seen)), float(np.mean(sizes))


def internal_pilot(*, pilot: int, ratio: float, shift: float, studies: int = 40_000) -> float:
    """The same for the rejected rule: the pilot's spread taken as exact, one t test over the pilot and all other seeds.

    Simulates all studies at once, with the t test by its definition and quantiles from scipy.
    """
    from scipy.stats import t as student

    rng = np.random.default_rng(0)
    counts = np.arange(2, 120)
    shown_by = np.array([detectable_ratio(int(n)) for n in counts])
    drawn = shift + ratio * rng.standard_normal((studies, counts[-1]))
    shown = 1 / drawn[:, :pilot].std(1, ddof=1)
    n = np.maximum(counts[np.minimum(np.searchsorted(-shown_by, -shown), len(counts) - 1)], pilot)
    used = np.arange(counts[-1]) < n[:, None]
    mean = (drawn * used).sum(1) / n
    sd = np.sqrt(((drawn - mean[:, None]) ** 2 * used).sum(1) / (n - 1))
    return float(np.mean(np.abs(mean) * np.sqrt(n) / sd > student.isf(0.025, n - 1)))


def test_level_and_power_in_a_small_simulation() -> None:
    rng = np.random.default_rng(2)
    assert called_different(rng, studies=80, ratio=1.0, shift=0.0)[0] <= 0.06
    assert called_different(rng, studies=80, ratio=1.0, shift=1.0)[0] >= 0.78


@pytest.mark.parametrize(
    "ratio",
    [
        pytest.param(0.5, marks=pytest.mark.exhaustive),
        pytest.param(1.0, marks=pytest.mark.slow),
        pytest.param(2.0, marks=pytest.mark.exhaustive),
    ],
)
def test_identical_arms_are_called_different_in_at_most_6_percent_of_studies(ratio: float) -> None:
    assert called_different(np.random.default_rng(11), studies=1000, ratio=ratio, shift=0.0)[0] <= 0.06


@pytest.mark.parametrize(
    ("ratio", "most"),
    [
        pytest.param(0.5, 7, marks=pytest.mark.slow),
        pytest.param(1.0, 18, marks=pytest.mark.slow),
        pytest.param(1.5, 35, marks=pytest.mark.exhaustive),
        pytest.param(2.0, 60, marks=pytest.mark.slow),
    ],
)
def test_an_effect_of_the_planned_size_is_detected(ratio: float, most: int) -> None:
    """With not many more seeds than if the spread were known, which takes 5, 10, 20 and 34."""
    seen, seeds = called_different(np.random.default_rng(13), studies=1000, ratio=ratio, shift=1.0)
    assert seen >= 0.78
    assert seeds <= most


@pytest.mark.slow
def test_reusing_the_pilot_gives_the_wrong_level_and_power() -> None:
    """The usual rule calls identical arms different too often, and detects the effect too rarely."""
    assert internal_pilot(pilot=3, ratio=1.0, shift=0.0) > 0.085
    assert internal_pilot(pilot=6, ratio=1.5, shift=0.0) > 0.065
    assert internal_pilot(pilot=3, ratio=1.5, shift=1.0) < 0.74


def test_the_inflation_restores_the_power_on_average() -> None:
    """For many seeds the power given a pilot is Φ(√n·effect/σ - z); here averaged over a million pilots."""
    from scipy.stats import norm

    for pilot, level in ((3, 0.05), (PILOT, 0.05), (PILOT, 0.01)):
        rng = np.random.default_rng(0)
        sd = np.sqrt(rng.chisquare(pilot - 1, 1_000_000) / (pilot - 1))
        z = norm.isf(level / 2)
        root_n = (z + norm.ppf(0.8)) * sd * inflation(pilot, level)
        assert norm.cdf(root_n - z).mean() == pytest.approx(0.8, abs=0.002)
    assert inflation(PILOT) == pytest.approx(1.247, abs=5e-4)
    assert inflation(1000) == pytest.approx(1.0, abs=2e-3)


def test_the_sentence_tells_the_cost() -> None:
    planned = plan(
        [0.01, -0.01, 0.012, -0.008, 0.001], effect=0.01, arms=3, seconds_per_run=60, max_minutes=None, unit="bpb"
    )
    assert planned.needed == planned.seeds == seeds_after_pilot(0.010, 5, effect=0.01, level=0.025) == 18
    assert planned.sentence == (
        "the differences of 5 pilot seeds have a standard deviation of 0.010; 18 further seeds are needed to detect "
        "0.01 bpb with a power of 0.8 (two-sided 5 % for 2 comparisons together), 54 runs in about 54 min"
    )


def test_the_mean_of_the_pilot_does_not_matter() -> None:
    pilot = [0.01, -0.01, 0.012, -0.008, 0.001]
    shifted = [value + 0.5 for value in pilot]
    settings = {"effect": 0.01, "arms": 2, "seconds_per_run": 1.0, "max_minutes": None}
    assert plan(pilot, **settings) == plan(shifted, **settings)  # type: ignore[arg-type]


def test_max_minutes_limits_the_seeds() -> None:
    """The pilot counts too: 2 arms with 5 seeds of a minute each leave 20 of 30 minutes."""
    pilot = [0.01, -0.01, 0.012, -0.008, 0.001]
    limited = plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=30)
    assert limited.needed is not None and limited.needed > limited.seeds == 10
    assert "max_minutes=30 allows 10 (about 20 min), so an effect of that size may go undetected" in limited.sentence
    assert plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=1).seeds == 1
    enough = plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=300)
    assert enough.seeds == enough.needed and "max_minutes" not in enough.sentence


def test_seeds_are_limited_without_max_minutes() -> None:
    planned = plan([0.1, -0.1, 0.1, -0.1, 0.1], effect=0.001, arms=2, seconds_per_run=60, max_minutes=None)
    assert planned.seeds == MOST and planned.needed is not None and planned.needed > 10_000
    assert "days" in planned.sentence and f"allows {MOST}" in planned.sentence


@pytest.mark.parametrize("pilot", [[], [0.01]])
def test_a_failed_pilot_gives_the_fewest_seeds(pilot: list[float]) -> None:
    planned = plan(pilot, effect=0.01, arms=2, seconds_per_run=1.0, max_minutes=None)
    assert (planned.seeds, planned.needed) == (FEWEST, None)
    assert "fewer than two pairs" in planned.sentence


def test_a_pilot_without_spread_gives_the_fewest_seeds() -> None:
    planned = plan([0.0] * 5, effect=0.01, arms=2, seconds_per_run=1.0, max_minutes=None)
    assert planned.seeds == planned.needed == FEWEST


def test_a_smaller_pilot_needs_more_seeds() -> None:
    assert (
        seeds_after_pilot(0.01, 2, effect=0.01)
        > seeds_after_pilot(0.01, 5, effect=0.01)
        > seeds_needed(0.01, effect=0.01)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5.2, "5 s"),
        (119, "119 s"),
        (150, "2.5 min"),
        (5400, "90 min"),
        (7300, "2 h"),
        (2e5, "2.3 days"),
        (9e6, "104 days"),
    ],
)
def test_durations_use_the_largest_suitable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == f"about {text}"
