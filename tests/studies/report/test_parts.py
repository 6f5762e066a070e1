"""The arithmetic behind the pictures: fronts, curves, labels, edges of a tuning; and how figures are written."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import made_study as made
from tinyllm.studies.report import numbers, pareto
from tinyllm.studies.report.curves import curve
from tinyllm.studies.report.labels import shortened, spread
from tinyllm.studies.report.markdown import escaped
from tinyllm.studies.report.summary import summaries
from tinyllm.studies.report.tuning import at_the_edge, tried

FEW = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=8))
def test_a_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        no_worse = all(a <= b for a, b in zip(one, other, strict=True))
        return no_worse and any(a < b for a, b in zip(one, other, strict=True))

    front = pareto.front(points)
    assert set(front) == {n for n, point in enumerate(points) if not any(beats(other, point) for other in points)}
    xs, ys = [points[n][0] for n in front], [points[n][1] for n in front]
    assert xs == sorted(xs) and ys == sorted(ys, reverse=True)
    corners = pareto.steps([points[n] for n in front])
    assert {points[n] for n in front} <= set(corners)
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.01, 3))
def test_spread_labels_keep_their_distance_and_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap=gap, low=-10.0, high=10.0)
    room = min(gap, 20.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    assert all(found[b] - found[a] >= room - 1e-9 for a, b in pairwise(order))
    assert all(-10 - 1e-9 <= one <= 10 + 1e-9 for one in found)


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert spread([3.0, 1.0, 2.0], gap=0.5, low=0.0, high=4.0) == [3.0, 1.0, 2.0]
    assert spread([2.0, 2.0], gap=1.0, low=0.0, high=4.0) == [1.5, 2.5]


@given(st.text(max_size=60))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str) -> None:
    short, whole = shortened(name, 26), numbers.line(name)
    assert len(short) <= 26
    assert short == whole or (short[:12] == whole[:12] and short[-13:] == whole[-13:])


def test_a_curve_is_made_of_what_all_seeds_have() -> None:
    """Seed 2 lacks an evaluation and seed 3 has failed; seconds are averaged, the band is the range."""
    study = made.study(arms=1)
    records = study.runs[1].records
    runs = [
        study.runs[0],
        replace(study.runs[1], records=[one for one in records if one["step"] != 60]),
        replace(study.runs[2], status="failed", value=None),
    ]
    [arm] = summaries(replace(study, runs=runs))
    found = curve(arm, axis="seconds", metric="val/bpb")
    assert found is not None
    assert found.seeds == 2
    assert found.steps == [step for step in made.STEPS if step != 60]
    by_step = [{one["step"]: one for one in run.records} for run in runs[:2]]
    for place, step in enumerate(found.steps):
        pair = [records[step] for records in by_step]
        assert found.x[place] == pytest.approx(sum(one["seconds"] for one in pair) / 2, rel=1e-12)
        assert found.mean[place] == pytest.approx(sum(one["val/bpb"] for one in pair) / 2, rel=1e-12)
        assert found.low[place] == min(one["val/bpb"] for one in pair)
        assert found.high[place] == max(one["val/bpb"] for one in pair)
    assert curve(arm, axis="tokens", metric="val/none") is None


def test_the_edges_of_a_tuning() -> None:
    arm = made.arm("mha", 0)
    assert at_the_edge(arm) == ["optimizer.lr"]
    assert at_the_edge(made.arm("gqa", 1)) == []
    single = replace(arm, trials=arm.trials[:1], tuned={"optimizer.lr": 0.001})
    assert at_the_edge(single) == [], "one value has no edges"
    words = replace(arm, trials=[{"act": "gelu", "value": 1.0}, {"act": "silu", "value": None}], tuned={"act": "gelu"})
    assert at_the_edge(words) == [] and tried(words, "act") == []
    lost = replace(arm, trials=[*arm.trials, {"optimizer.lr": 0.1, "value": None}])
    assert [x for x, _ in tried(lost, "optimizer.lr")] == [0.001, 0.003, 0.01]
    assert at_the_edge(lost) == [], "a trial that failed was tried as well"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1.8459 ± 0.0022", "1.8459 ± 0.0022"),
        ("12. a", "12\\. a"),
        ("- a", "\\- a"),
        ("−0.1", "−0.1"),
        ("ffn.d_ff _a_", "ffn.d_ff \\_a\\_"),
        ("a|b <c> [d](e)", "a\\|b \\<c> \\[d\\](e)"),
        ("two\nlines", "two lines"),
        ("R&D &lt;", "R&D \\&lt;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_figures_are_written_with_what_they_mean() -> None:
    assert numbers.signed(-0.01234) == "−0.0123" and numbers.signed(0.0) == "+0.0000"
    assert numbers.probability(0.04996) == "0.04996"
    assert numbers.probability(0.0004) == "< 0.001" and numbers.probability(None) == "–"
    assert numbers.rate(45_095.2) == "45,095" and numbers.rate(4.321) == "4.32"
    assert numbers.percent(-0.0004) == "−0.04 %" and numbers.size(371_000_001) == "371 MB"
    assert numbers.line("a\n\x1b[31mb") == "a \\x1b[31mb"
    assert numbers.interval(made.difference("a", "b", [])) == "–"
    assert math.isnan(made.difference("a", "b", []).mean)
