"""Verdicts: their sentences, when an arm is called better or worse, and how values are rounded."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.statistics import differences
from tinyllm.studies.compare.verdicts import p_value, rounded, verdicts

DETECTED = Difference(
    arm="mla",
    seeds=[1, 2, 3, 4, 5],
    mean=-0.02104,
    sd=0.0067,
    low=-0.02934,
    high=-0.01274,
    p=0.0021,
    p_corrected=0.0021,
    detectable=0.0113,
    seeds_needed=6,
)
UNDETECTED = replace(
    DETECTED,
    seeds=[1, 2, 3],
    mean=0.004,
    sd=0.00465,
    low=-0.00755,
    high=0.01555,
    p=0.28,
    p_corrected=0.28,
    detectable=0.0152,
    seeds_needed=9,
)


@pytest.fixture(autouse=True, scope="module")
def no_collection() -> Iterator[None]:
    """statsmodels runs the garbage collector for every correction, which takes longer than the tests themselves."""
    with mock.patch.object(gc, "collect", lambda: 0):
        yield


def sentences(*found: Difference, metric: str = "val/bpb", effect: float = 0.01) -> list[str]:
    return verdicts(found, reference="mha", metric=metric, effect=effect)


def test_a_detected_difference() -> None:
    first, legend = sentences(DETECTED)
    assert first == "mla is better than mha by 0.021 ± 0.008 bpb (n = 5, p = 0.002)"
    assert "95 % interval" in legend and "Holm" not in legend
    worse = sentences(replace(DETECTED, mean=0.02104, low=0.01274, high=0.02934), metric="val/loss")[0]
    assert worse == "mla is worse than mha by 0.021 ± 0.008 nats per token (n = 5, p = 0.002)"


def test_a_detected_difference_below_the_effect_is_qualified() -> None:
    assert sentences(DETECTED, effect=0.05)[0].endswith("; less than 0.05, the smallest difference worth detecting")


def test_an_undetected_difference_tells_what_could_be_detected() -> None:
    assert sentences(UNDETECTED)[0] == (
        "mla against mha: no difference above 0.015 bpb can be detected with 3 seeds (measured +0.004 ± 0.012, p = "
        "0.280); 9 seeds would be needed to detect 0.01 (the interval of ± 0.012 is wider than that)"
    )


def test_a_spread_larger_than_the_values_shows_nothing() -> None:
    wide = replace(UNDETECTED, sd=4.3, low=-9.7, high=11.7, detectable=14.1, seeds_needed=900_000)
    [sentence, _] = verdicts([wide], reference="mha", metric="val/bpb", effect=0.01, level=1.8)
    assert "inconclusive with 3 seeds: the smallest detectable difference exceeds the reference's own value" in sentence
    assert "14" not in sentence
    assert "no difference above 14 bpb" in verdicts([wide], reference="mha", metric="val/bpb", effect=0.01, level=20)[0]


def test_a_difference_significant_only_on_its_own_is_not_called_better() -> None:
    first, _, legend = sentences(replace(DETECTED, p=0.03, p_corrected=0.09), replace(UNDETECTED, arm="gqa"))
    assert "better" not in first and first.endswith("significant on its own, but not among this many comparisons")
    assert "corrected for 2 comparisons (Holm)" in legend


def test_an_effect_outside_the_interval_is_ruled_out() -> None:
    small = replace(UNDETECTED, mean=0.001, low=-0.002, high=0.004, detectable=0.005, seeds_needed=2)
    assert sentences(small)[0].endswith("; a difference of 0.01 is outside the 95 % interval")
    near = replace(small, low=-0.009, high=0.011, seeds_needed=3)
    assert sentences(near)[0].endswith("; a difference of 0.01 would have been detected with a probability of 0.8")


def test_one_seed_gives_no_verdict() -> None:
    nothing = {"low": None, "high": None, "sd": None, "p": None, "p_corrected": None, "detectable": None}
    one = replace(DETECTED, seeds=[1], seeds_needed=None, **nothing)  # type: ignore[arg-type]
    assert sentences(one) == [
        "mla against mha: −0.021 bpb with the only shared seed; one seed does not measure the noise"
    ]


def test_identical_differences_are_not_tested() -> None:
    seeds = {1: 1.8123, 2: 1.9456}
    values = {"mha": seeds, "same": dict(seeds), "moved": {s: v + 0.1 for s, v in seeds.items()}}
    same, moved, _ = verdicts(
        differences(values, reference="mha", effect=0.01), reference="mha", metric="m", effect=0.01
    )
    assert same == "same against mha: identical in all 2 seeds"
    assert moved == (
        "moved against mha: +0.10 m in each of 2 seeds; they do not vary, so there is no noise to test against"
    )


def test_arms_without_a_shared_seed_are_reported() -> None:
    arms = ["mha", "gqa", "mla"]
    first, second, _ = verdicts([DETECTED], reference="mha", metric="val/bpb", effect=0.01, arms=arms)
    assert first == "gqa against mha: no seed has finished in both"
    assert second.startswith("mla is better")
    assert verdicts([], reference="mha", metric="val/bpb", effect=0.01, arms=arms) == [
        "no verdict: no other arm shares a finished seed with mha"
    ]
    assert verdicts([], reference="mha", metric="val/bpb", effect=0.01) == []


values = st.floats(-0.1, 0.1).map(lambda value: 1.8 + round(value, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values, values), min_size=0, max_size=6), st.sampled_from((0.001, 0.01, 1.0)))
def test_better_and_worse_only_below_the_level(rows: list[tuple[float, float, float]], effect: float) -> None:
    arms = {name: {seed: row[i] for seed, row in enumerate(rows)} for i, name in enumerate(("mha", "b", "c"))}
    found = differences(arms, reference="mha", effect=effect)
    found_sentences = verdicts(found, reference="mha", metric="val/bpb", effect=effect, arms=list(arms))
    for one, sentence in zip(found, found_sentences, strict=False):
        passes = one.p_corrected is not None and one.p_corrected < 0.05 and one.sd != 0
        assert (f"{one.arm} is better than mha" in sentence) == (passes and one.mean < 0)
        assert (f"{one.arm} is worse than mha" in sentence) == (passes and one.mean > 0)
    assert all("nan" not in sentence and "None" not in sentence for sentence in found_sentences)


@pytest.mark.parametrize(
    ("value", "uncertainty", "text"),
    [
        (0.02104, 0.0083, "0.021"),
        (0.02104, 0.0132, "0.021"),
        (0.02149, 0.0099, "0.021"),
        (0.02149, 0.00996, "0.021"),
        (0.02149, 0.0028, "0.0215"),
        (3.26, 12.0, "3"),
        (123.0, 45.0, "120"),
        (0.5, 0.00012, "0.50000"),
        (-0.0008, 0.0022, "-0.0008"),
        (0.25, 0.0, "0.25"),
    ],
)
def test_values_are_rounded_to_their_uncertainty(value: float, uncertainty: float, text: str) -> None:
    assert rounded(value, uncertainty) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "= 1.000"), (0.04996, "= 0.04996"), (0.0503, "= 0.050"), (0.0021, "= 0.002"), (1e-12, "< 0.001")],
)
def test_a_p_value_is_rounded_on_its_side_of_the_level(p: float, text: str) -> None:
    assert p_value(p) == text


def test_more_of_a_reward_is_better() -> None:
    found = differences({"mha": {1: 0.2, 2: 0.21}, "mla": {1: 0.5, 2: 0.515}}, reference="mha", effect=0.05)
    of_reward = partial(verdicts, found, reference="mha", metric="val/reward", effect=0.05, level=0.2)
    for lower, word in ((False, "better"), (True, "worse")):
        sentence = of_reward(lower_is_better=lower)[0]
        assert sentence.startswith(f"mla is {word} than mha by 0.30 ± 0.03 of reward (n = 2"), sentence


def test_a_large_detectable_difference_of_a_reward_is_no_noise() -> None:
    """A loss cannot fall below 0, but a reward of 0.1 may rise by any amount."""
    found = differences({"mha": {1: 0.1, 2: 0.1}, "mla": {1: 0.1, 2: 0.2}}, reference="mha", effect=0.05)
    rewards = verdicts(found, reference="mha", metric="val/reward", effect=0.05, level=0.1, lower_is_better=False)
    losses = verdicts(found, reference="mha", metric="val/loss", effect=0.05, level=0.1)
    assert "no difference above" in rewards[0] and "exceeds the reference's own value" in losses[0]
