"""The sentences of a comparison: what they say, what they never say, and how figures are rounded."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.studies.compare.results import Difference
from tinyllm.studies.compare.statistics import differences
from tinyllm.studies.compare.verdicts import p_value, rounded, verdicts

SEEN = Difference(
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
UNSEEN = replace(
    SEEN,
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
    """statsmodels collects garbage for every correction, which takes longer than all the rest."""
    with mock.patch.object(gc, "collect", lambda: 0):
        yield


def said(*found: Difference, metric: str = "val/bpb", effect: float = 0.01) -> list[str]:
    return verdicts(found, reference="mha", metric=metric, effect=effect)


def test_a_difference_that_is_seen() -> None:
    first, meaning = said(SEEN)
    assert first == "mla is better than mha by 0.021 ± 0.008 bpb (n = 5, p = 0.002)"
    assert "95 % interval" in meaning and "Holm" not in meaning
    worse = said(replace(SEEN, mean=0.02104, low=0.01274, high=0.02934), metric="val/loss")[0]
    assert worse == "mla is worse than mha by 0.021 ± 0.008 nats per token (n = 5, p = 0.002)"


def test_a_difference_that_is_seen_and_small() -> None:
    assert said(SEEN, effect=0.05)[0].endswith("; that is less than 0.05, the least worth seeing")


def test_a_difference_that_is_not_seen() -> None:
    assert said(UNSEEN)[0] == (
        "mla against mha: no difference above 0.015 bpb can be seen with 3 seeds (measured +0.004 ± 0.012, p = 0.280); "
        "9 would be needed to see 0.01 (the interval of ± 0.012 is wider than that)"
    )


def test_a_spread_beyond_the_figures_shows_nothing() -> None:
    wide = replace(UNSEEN, sd=4.3, low=-9.7, high=11.7, detectable=14.1, seeds_needed=900_000)
    [sentence, _] = verdicts([wide], reference="mha", metric="val/bpb", effect=0.01, level=1.8)
    assert "3 seeds show nothing, their differences spread by more than the figures themselves" in sentence
    assert "14" not in sentence
    assert "no difference above 14 bpb" in verdicts([wide], reference="mha", metric="val/bpb", effect=0.01, level=20)[0]


def test_what_only_fails_among_many_is_told() -> None:
    first, _, meaning = said(replace(SEEN, p=0.03, p_corrected=0.09), replace(UNSEEN, arm="gqa"))
    assert "better" not in first and first.endswith("alone it would pass, among so many comparisons it does not")
    assert "corrected for 2 comparisons (Holm)" in meaning


def test_an_effect_that_is_ruled_out() -> None:
    small = replace(UNSEEN, mean=0.001, low=-0.002, high=0.004, detectable=0.005, seeds_needed=2)
    assert said(small)[0].endswith("; one of 0.01 is outside its 95 % interval")
    near = replace(small, low=-0.009, high=0.011, seeds_needed=3)
    assert said(near)[0].endswith("; one of 0.01 would have been seen with a probability of 0.8")


def test_one_seed() -> None:
    nothing = {"low": None, "high": None, "sd": None, "p": None, "p_corrected": None, "detectable": None}
    one = replace(SEEN, seeds=[1], seeds_needed=None, **nothing)  # type: ignore[arg-type]
    assert said(one) == [
        "mla against mha: −0.021 bpb with the one seed that both have, and one seed says nothing about noise"
    ]


def test_figures_without_any_spread() -> None:
    seeds = {1: 1.8123, 2: 1.9456}
    values = {"mha": seeds, "same": dict(seeds), "moved": {s: v + 0.1 for s, v in seeds.items()}}
    same, moved, _ = verdicts(
        differences(values, reference="mha", effect=0.01), reference="mha", metric="m", effect=0.01
    )
    assert same == "same against mha: the same to the last digit in all 2 seeds"
    assert moved == (
        "moved against mha: +0.10 m in each of 2 seeds without any spread, so there is no noise to test it against"
    )


def test_arms_that_failed() -> None:
    arms = ["mha", "gqa", "mla"]
    first, second, _ = verdicts([SEEN], reference="mha", metric="val/bpb", effect=0.01, arms=arms)
    assert first == "gqa against mha: no seed has finished in both"
    assert second.startswith("mla is better")
    assert verdicts([], reference="mha", metric="val/bpb", effect=0.01, arms=arms) == [
        "nothing can be said: no other arm has finished a seed that mha has finished as well"
    ]
    assert verdicts([], reference="mha", metric="val/bpb", effect=0.01) == []


values = st.floats(-0.1, 0.1).map(lambda value: 1.8 + round(value, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values, values), min_size=0, max_size=6), st.sampled_from((0.001, 0.01, 1.0)))
def test_never_better_within_the_noise(rows: list[tuple[float, float, float]], effect: float) -> None:
    arms = {name: {seed: row[i] for seed, row in enumerate(rows)} for i, name in enumerate(("mha", "b", "c"))}
    found = differences(arms, reference="mha", effect=effect)
    sentences = verdicts(found, reference="mha", metric="val/bpb", effect=effect, arms=list(arms))
    for one, sentence in zip(found, sentences, strict=False):
        passes = one.p_corrected is not None and one.p_corrected < 0.05 and one.sd != 0
        assert (f"{one.arm} is better than mha" in sentence) == (passes and one.mean < 0)
        assert (f"{one.arm} is worse than mha" in sentence) == (passes and one.mean > 0)
    assert all("nan" not in sentence and "None" not in sentence for sentence in sentences)


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
def test_digits_follow_the_uncertainty(value: float, uncertainty: float, text: str) -> None:
    assert rounded(value, uncertainty) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "= 1.000"), (0.04996, "= 0.04996"), (0.0503, "= 0.050"), (0.0021, "= 0.002"), (1e-12, "< 0.001")],
)
def test_a_p_value_stays_on_its_side(p: float, text: str) -> None:
    assert p_value(p) == text
