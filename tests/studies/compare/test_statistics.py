"""Paired differences, against a published data set, tables of power, and simulated studies."""

import gc
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.statistics import detectable_ratio, differences, mean_and_sd, power, seeds_needed


@pytest.fixture(autouse=True, scope="module")
def no_collection() -> Iterator[None]:
    """statsmodels runs the garbage collector for every correction, which takes longer than the tests themselves."""
    with mock.patch.object(gc, "collect", lambda: 0):
        yield


def compared(values: dict[str, dict[int, float]], *, effect: float = 0.01) -> dict[str, Difference]:
    return {one.arm: one for one in differences(values, reference="a", effect=effect)}


def study(rng: np.random.Generator, *, n: int, shifts: tuple[float, ...], sd: float) -> list[Difference]:
    """A study in which the seed shifts all arms alike, by ten times the spread of the differences."""
    seeds = dict(enumerate(1.8 + 10 * sd * rng.standard_normal(n)))
    noise = sd * rng.standard_normal((len(shifts), n))
    arms = {f"b{i}": {s: v + shift + noise[i, s] for s, v in seeds.items()} for i, shift in enumerate(shifts)}
    return differences({"a": seeds, **arms}, reference="a", effect=1.0)


def false_alarms(rng: np.random.Generator, *, studies: int, n: int, arms: int) -> float:
    """The share of studies in which any of several copies of the reference is called different."""
    found = (study(rng, n=n, shifts=(0.0,) * arms, sd=0.01) for _ in range(studies))
    return float(
        np.mean([any(one.p_corrected < 0.05 for one in arms_ if one.p_corrected is not None) for arms_ in found])
    )


def test_students_sleep_data() -> None:
    """Student 1908, additional sleep; mean, t and p as in textbooks, the interval as computed by R."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = compared({"a": dict(enumerate(first)), "b": dict(enumerate(second))})["b"]
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.229995, rel=1e-6)
    assert found.mean / (found.sd / math.sqrt(10)) == pytest.approx(4.0621, abs=1e-4)
    assert found.p == found.p_corrected == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.seeds == list(range(10))


@pytest.mark.parametrize(("ratio", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (2.0, 5)])
def test_seeds_needed_agrees_with_tables_of_power(ratio: float, n: int) -> None:
    """The paired t test at 5 % two-sided and a power of 0.8, as in G*Power and R's power.t.test."""
    assert seeds_needed(0.3, effect=0.3 * ratio) == n
    assert power(ratio, n) >= 0.8 > power(ratio, n - 1)


@pytest.mark.parametrize("level", [0.05, 0.05 / 7])
def test_detectable_difference_and_seeds_needed_are_inverse(level: float) -> None:
    for n in (3, 4, 9, 40, 500):
        ratio = detectable_ratio(n, level)
        assert seeds_needed(1.0, effect=ratio * 1.0001, level=level) == n
        assert seeds_needed(1.0, effect=ratio * 0.999, level=level) == n + 1 or n > 100
    assert seeds_needed(1e-9, effect=1.0, level=level) == 2


def test_power_is_the_share_of_studies_that_detect() -> None:
    """A hundred thousand studies of 4 seeds, with the t statistic written out."""
    drawn = np.random.default_rng(0).standard_normal((100_000, 4)) + detectable_ratio(4)
    t = drawn.mean(1) * 2 / drawn.std(1, ddof=1)
    assert np.mean(np.abs(t) > 3.182446) == pytest.approx(0.8, abs=0.004)


def test_holms_correction_written_out() -> None:
    rng = np.random.default_rng(3)
    values = {name: {s: float(v) for s, v in enumerate(rng.normal(0.4, 1, 6))} for name in "abcdef"}
    found = compared(values)
    ranked = sorted(found.values(), key=lambda one: one.p or 0.0)
    largest = 0.0
    for rank, one in enumerate(ranked):
        largest = max(largest, min(1.0, (5 - rank) * (one.p or 0.0)))
        assert one.p_corrected == pytest.approx(largest)


def test_many_arms_need_more_seeds() -> None:
    values = {name: {s: float(v) for s, v in enumerate(np.random.default_rng(7).normal(size=5))} for name in "ab"}
    values["b"] = {s: v + 0.1 * s for s, v in values["b"].items()}
    alone = compared(values, effect=0.1)["b"]
    among = compared(values | {name: {s: v + s for s, v in values["b"].items()} for name in "cde"}, effect=0.1)["b"]
    assert (alone.mean, alone.sd, alone.p, alone.low) == (among.mean, among.sd, among.p, among.low)
    assert alone.seeds_needed == seeds_needed(alone.sd or 0.0, effect=0.1)
    assert among.seeds_needed == seeds_needed(alone.sd or 0.0, effect=0.1, level=0.05 / 4)
    assert among.detectable == (alone.sd or 0.0) * detectable_ratio(5, 0.05 / 4)


def test_arms_are_paired_by_shared_seeds() -> None:
    found = compared({"a": {1: 1.0, 2: 2.0, 3: 3.5}, "b": {3: 3.0, 1: 0.9, 7: 0.0}, "c": {}, "d": {9: 1.0}})
    assert list(found) == ["b"]
    assert found["b"].seeds == [1, 3]
    assert found["b"].mean == pytest.approx(-0.3)
    assert differences({"b": {1: 1.0}}, reference="a", effect=0.1) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_a_figure_that_is_not_finite_is_left_out(bad: float) -> None:
    good = {"a": {1: 1.0, 2: 1.2, 3: 1.1}, "b": {1: 1.1, 2: 1.25, 3: 1.3}}
    expected = compared({"a": {1: 1.0, 2: 1.2}, "b": {1: 1.1, 2: 1.25}})
    assert compared({"a": good["a"], "b": good["b"] | {3: bad}}) == expected
    assert compared({"a": good["a"] | {3: bad}, "b": good["b"]}) == expected
    assert compared({"a": good["a"], "b": dict.fromkeys((1, 2, 3), bad)}) == {}


def test_one_seed_has_a_mean_and_nothing_else() -> None:
    one = compared({"a": {1: 1.0}, "b": {1: 1.5}})["b"]
    assert one.mean == 0.5
    assert {one.sd, one.low, one.high, one.p, one.p_corrected, one.detectable, one.seeds_needed} == {None}


def test_identical_differences_are_not_tested() -> None:
    seeds = {1: 1.8123, 2: 1.9456, 3: 1.7001}
    found = compared({"a": seeds, "same": dict(seeds), "moved": {s: v + 0.1 for s, v in seeds.items()}})
    same, moved = found["same"], found["moved"]
    assert (same.mean, same.sd, same.low, same.high, same.p, same.p_corrected) == (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert moved.mean == pytest.approx(0.1)
    assert (moved.sd, moved.p, moved.p_corrected) == (0.0, None, None)


def test_arms_without_a_test_do_not_count_in_the_correction() -> None:
    seeds = {1: 1.8123, 2: 1.9456, 3: 1.7001}
    moved = {s: v + 0.01 * s for s, v in seeds.items()}
    found = compared({"a": seeds, "b": moved, "shifted": {s: v + 0.1 for s, v in seeds.items()}, "one": {1: 1.0}})
    assert found["b"].p_corrected == found["b"].p


def test_results_are_plain_python_numbers() -> None:
    found = compared({"a": {1: 1.0, 2: 1.2, 3: 1.1}, "b": {1: 1.1, 2: 1.25, 3: 1.3}})["b"]
    kinds: dict[str, Any] = {name: type(value) for name, value in vars(found).items()}
    assert set(kinds.values()) == {str, list, float, int}
    assert mean_and_sd([1.0]) == (1.0, None)


def test_identical_arms_are_rarely_called_different() -> None:
    assert false_alarms(np.random.default_rng(1), studies=150, n=3, arms=1) <= 0.06


@pytest.mark.parametrize(
    ("n", "arms"),
    [
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(3, 4, marks=pytest.mark.slow),
        pytest.param(5, 1, marks=pytest.mark.exhaustive),
        pytest.param(5, 7, marks=pytest.mark.exhaustive),
    ],
)
def test_identical_arms_are_called_different_in_at_most_6_percent_of_studies(n: int, arms: int) -> None:
    """For any number of arms; Holm's correction is conservative for arms that share a reference."""
    assert false_alarms(np.random.default_rng(n), studies=1000, n=n, arms=arms) <= 0.06


@pytest.mark.parametrize(
    ("ratio", "arms"),
    [
        pytest.param(1.0, 1, marks=pytest.mark.slow),
        pytest.param(0.5, 1, marks=pytest.mark.exhaustive),
        pytest.param(2.0, 1, marks=pytest.mark.exhaustive),
        pytest.param(1.0, 3, marks=pytest.mark.exhaustive),
    ],
)
def test_an_effect_of_the_planned_size_is_detected(ratio: float, arms: int) -> None:
    """With the number of seeds for a known spread; of several arms one differs."""
    n = seeds_needed(ratio, effect=1.0, level=0.05 / arms)
    rng = np.random.default_rng(5)
    found = [study(rng, n=n, shifts=(-1.0,) + (0.0,) * (arms - 1), sd=ratio)[0] for _ in range(1000)]
    detected = [one.p_corrected is not None and one.p_corrected < 0.05 and one.mean < 0 for one in found]
    assert np.mean(detected) >= 0.78
    assert n <= 2 or power(1 / ratio, n - 1, 0.05 / arms) < 0.8
