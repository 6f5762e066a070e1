"""How many seeds: the rule against simulated studies, the rules that it was chosen over, cost and limits."""

import gc
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tinyllm.studies.compare.seed_planning import FEWEST, MOST, PILOT, duration, inflation, plan, seeds_after_pilot
from tinyllm.studies.compare.statistics import detectable_ratio, differences, seeds_needed


@pytest.fixture(autouse=True, scope="module")
def no_collection() -> Iterator[None]:
    """statsmodels collects garbage for every correction, which takes longer than all the rest."""
    with mock.patch.object(gc, "collect", lambda: 0):
        yield


def called_different(rng: np.random.Generator, *, studies: int, ratio: float, shift: float) -> tuple[float, float]:
    """How often the second of two arms is called better in studies with a pilot, and their mean number of seeds.

    Args:
        ratio: standard deviation of the differences in effects.
        shift: what the arms truly differ by, in effects; 0: they are the same.
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
    """The same for what is not done: the pilot's spread at its face value, one t test over pilot and all other seeds.

    All studies at once; the t test by its definition, its quantiles by scipy.
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


def test_a_small_simulation() -> None:
    """The large ones are slow."""
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
def test_identical_arms_are_called_different_in_one_study_of_twenty(ratio: float) -> None:
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
def test_an_effect_of_the_planned_size_is_found(ratio: float, most: int) -> None:
    """At a cost not far from that of knowing the spread, which is 5, 10, 20 and 34 seeds."""
    seen, seeds = called_different(np.random.default_rng(13), studies=1000, ratio=ratio, shift=1.0)
    assert seen >= 0.78
    assert seeds <= most


@pytest.mark.slow
def test_why_the_pilot_is_left_out_and_its_spread_not_believed() -> None:
    """What would be usual is wrong on both counts, with a small pilot and with a larger one."""
    assert internal_pilot(pilot=3, ratio=1.0, shift=0.0) > 0.085
    assert internal_pilot(pilot=6, ratio=1.5, shift=0.0) > 0.065
    assert internal_pilot(pilot=3, ratio=1.5, shift=1.0) < 0.74


def test_the_factor_restores_the_power_on_average() -> None:
    """Many seeds, of which the power given a pilot is Φ(√n·effect/σ - z), averaged over a million pilots."""
    from scipy.stats import norm

    for pilot, level in ((3, 0.05), (PILOT, 0.05), (PILOT, 0.01)):
        rng = np.random.default_rng(0)
        sd = np.sqrt(rng.chisquare(pilot - 1, 1_000_000) / (pilot - 1))
        z = norm.isf(level / 2)
        root_n = (z + norm.ppf(0.8)) * sd * inflation(pilot, level)
        assert norm.cdf(root_n - z).mean() == pytest.approx(0.8, abs=0.002)
    assert inflation(PILOT) == pytest.approx(1.247, abs=5e-4)
    assert inflation(1000) == pytest.approx(1.0, abs=2e-3)


def test_the_plan_says_what_it_costs() -> None:
    found = plan(
        [0.01, -0.01, 0.012, -0.008, 0.001], effect=0.01, arms=3, seconds_per_run=60, max_minutes=None, unit="bpb"
    )
    assert found.needed == found.seeds == seeds_after_pilot(0.010, 5, effect=0.01, level=0.025) == 18
    assert found.sentence == (
        "the differences of 5 pilot seeds have a standard deviation of 0.010; 18 further seeds are needed to see "
        "0.01 bpb with a power of 0.8 (two-sided 5 % for 2 comparisons together), 54 runs in about 54 min"
    )


def test_the_mean_of_the_pilot_is_of_no_account() -> None:
    pilot = [0.01, -0.01, 0.012, -0.008, 0.001]
    shifted = [value + 0.5 for value in pilot]
    settings = {"effect": 0.01, "arms": 2, "seconds_per_run": 1.0, "max_minutes": None}
    assert plan(pilot, **settings) == plan(shifted, **settings)  # type: ignore[arg-type]


def test_minutes_are_obeyed() -> None:
    """The pilot's own runs count: 2 arms of 5 seeds, a minute each, leave 20 of 30."""
    pilot = [0.01, -0.01, 0.012, -0.008, 0.001]
    limited = plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=30)
    assert limited.needed is not None and limited.needed > limited.seeds == 10
    assert "max_minutes=30 allows 10 (about 20 min), so an effect of that size may stay unseen" in limited.sentence
    assert plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=1).seeds == 1
    enough = plan(pilot, effect=0.01, arms=2, seconds_per_run=60, max_minutes=300)
    assert enough.seeds == enough.needed and "max_minutes" not in enough.sentence


def test_there_is_an_end_without_minutes() -> None:
    found = plan([0.1, -0.1, 0.1, -0.1, 0.1], effect=0.001, arms=2, seconds_per_run=60, max_minutes=None)
    assert found.seeds == MOST and found.needed is not None and found.needed > 10_000
    assert "days" in found.sentence and f"allows {MOST}" in found.sentence


@pytest.mark.parametrize("pilot", [[], [0.01]])
def test_a_pilot_that_failed(pilot: list[float]) -> None:
    found = plan(pilot, effect=0.01, arms=2, seconds_per_run=1.0, max_minutes=None)
    assert (found.seeds, found.needed) == (FEWEST, None)
    assert "fewer than two pairs" in found.sentence


def test_a_pilot_without_spread() -> None:
    found = plan([0.0] * 5, effect=0.01, arms=2, seconds_per_run=1.0, max_minutes=None)
    assert found.seeds == found.needed == FEWEST


def test_two_pairs_that_are_left_of_a_pilot_say_less() -> None:
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
def test_durations_are_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert duration(seconds) == f"about {text}"
