"""Arithmetic behind the pictures (fronts, curves, labels, tuning edges) and number formats."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import made_study as made
from tinyllm.errors import one_line
from tinyllm.studies.report import numbers
from tinyllm.studies.report.blocks import Figures
from tinyllm.studies.report.content import report
from tinyllm.studies.report.labels import shortened, spread
from tinyllm.studies.report.markdown import escaped
from tinyllm.studies.report.plots import forest
from tinyllm.studies.report.plots_curves import curve
from tinyllm.studies.report.plots_pareto import PRICES, front, front_names, staircase
from tinyllm.studies.report.summary import at_the_edge, summaries, tried
from tinyllm.studies.report.svg import drawing
from tinyllm.studies.report.tables import sources_table

FEW = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=8))
def test_front_holds_the_points_that_no_other_dominates(points: list[tuple[float, float]]) -> None:
    def dominates(point: tuple[float, float], other: tuple[float, float]) -> bool:
        no_worse = all(a <= b for a, b in zip(point, other, strict=True))
        return no_worse and any(a < b for a, b in zip(point, other, strict=True))

    best = front(points)
    assert set(best) == {n for n, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    xs, ys = [points[n][0] for n in best], [points[n][1] for n in best]
    assert xs == sorted(xs) and ys == sorted(ys, reverse=True)
    corners = staircase([points[n] for n in best])
    assert {points[n] for n in best} <= set(corners)
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.01, 3))
def test_spread_labels_keep_their_distance_and_order(wanted: list[float], gap: float) -> None:
    positions = spread(wanted, gap=gap, low=-10.0, high=10.0)
    room = min(gap, 20.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    assert all(positions[b] - positions[a] >= room - 1e-9 for a, b in pairwise(order))
    assert all(-10 - 1e-9 <= position <= 10 + 1e-9 for position in positions)


def test_labels_with_enough_room_do_not_move() -> None:
    assert spread([3.0, 1.0, 2.0], gap=0.5, low=0.0, high=4.0) == [3.0, 1.0, 2.0]
    assert spread([2.0, 2.0], gap=1.0, low=0.0, high=4.0) == [1.5, 2.5]


@given(st.text(max_size=60))
def test_shortened_name_fits_and_keeps_both_ends(name: str) -> None:
    short, whole = shortened(name, 26), one_line(name)
    assert len(short) <= 26
    assert short == whole or (short[:12] == whole[:12] and short[-13:] == whole[-13:])


def test_curve_has_the_steps_that_all_finished_seeds_share() -> None:
    """Seed 2 lacks an evaluation and seed 3 failed. Seconds are averaged; the band is the range."""
    study = made.study(arms=1)
    records = study.runs[1].records
    runs = [
        study.runs[0],
        replace(study.runs[1], records=[record for record in records if record["step"] != 60]),
        replace(study.runs[2], status="failed", value=None),
    ]
    [arm] = summaries(replace(study, runs=runs))
    found = curve(arm, axis="seconds", metric="val/bpb")
    assert found is not None
    assert found.seeds == 2
    assert found.steps == [step for step in made.STEPS if step != 60]
    by_step = [{record["step"]: record for record in run.records} for run in runs[:2]]
    for place, step in enumerate(found.steps):
        pair = [records[step] for records in by_step]
        assert found.x[place] == pytest.approx(sum(record["seconds"] for record in pair) / 2, rel=1e-12)
        assert found.mean[place] == pytest.approx(sum(record["val/bpb"] for record in pair) / 2, rel=1e-12)
        assert found.low[place] == min(record["val/bpb"] for record in pair)
        assert found.high[place] == max(record["val/bpb"] for record in pair)
    assert curve(arm, axis="tokens", metric="val/none") is None


def test_tuned_values_at_the_edge_of_the_tried_range() -> None:
    arm = made.arm("mha", 0)
    assert at_the_edge(arm) == ["optimizer.lr"]
    assert at_the_edge(made.arm("gqa", 1)) == []
    single = replace(arm, trials=arm.trials[:1], tuned={"optimizer.lr": 0.001})
    assert at_the_edge(single) == [], "a single value has no edges"
    not_numeric = replace(
        arm, trials=[{"act": "gelu", "value": 1.0}, {"act": "silu", "value": None}], tuned={"act": "gelu"}
    )
    assert at_the_edge(not_numeric) == [] and tried(not_numeric, "act") == []
    failed = replace(arm, trials=[*arm.trials, {"optimizer.lr": 0.1, "value": None}])
    assert [x for x, _ in tried(failed, "optimizer.lr")] == [0.001, 0.003, 0.01]
    assert at_the_edge(failed) == [], "a failed trial widens the range too"


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
def test_markdown_shows_text_literally(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_number_formats() -> None:
    assert numbers.signed(-0.01234) == "−0.0123" and numbers.signed(0.0) == "+0.0000"
    assert numbers.probability(0.04996) == "0.04996"
    assert numbers.probability(0.0004) == "< 0.001" and numbers.probability(None) == "–"
    assert numbers.rate(45_095.2) == "45,095" and numbers.rate(4.321) == "4.32"
    assert numbers.percent(-0.0004) == "−0.04 %" and numbers.size(371_000_001) == "371 MB"
    assert one_line("a\n\x1b[31mb") == "a \\x1b[31mb"
    assert numbers.interval(made.difference("a", "b", [])) == "–"
    assert math.isnan(made.difference("a", "b", []).mean)


def test_the_sources_of_mixtures_are_averaged_over_seeds() -> None:
    arms = [made.arm("whole", 0), made.arm("mixed", 1)]
    runs = [made.run("whole", 0, seed) for seed in (0, 1)]
    for seed, code in ((0, 2.5), (1, 3.5)):
        run = made.run("mixed", 1, seed)
        last = run.records[-1] | {"val/prose/bpb": 1.5, "val/code/bpb": code, "val/code/loss": 9.0}
        runs.append(replace(run, records=[*run.records[:-1], last]))
    study = made.study(arms=2, seeds=2)
    table = sources_table(summaries(replace(study, arms=arms, runs=runs, reference="whole", differences=[])))
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["whole", numbers.MISSING, numbers.MISSING],
        ["mixed", "1.5000", "3.0000"],
    ]
    assert table.headings == ["arm", "prose", "code"]
    assert sources_table(summaries(study)) is None


def test_front_of_a_metric_of_which_more_is_better() -> None:
    arms = summaries(made.study(arms=4, metric="val/reward", lower_is_better=False))
    for price, (_, cost_of) in PRICES.items():
        points = {one.arm.name: (cost_of(one), one.mean) for one in arms}
        expected = [
            name
            for name, (cost, mean) in points.items()
            if not any(
                other != (cost, mean) and other[0] <= cost and other[1] >= mean  # type: ignore[operator]
                for other in points.values()
            )
        ]
        assert front_names(arms, price, lower_is_better=False) == expected
    assert any(front_names(arms, price) != front_names(arms, price, lower_is_better=False) for price in PRICES)


@pytest.mark.parametrize(
    ("lower_is_better", "left", "right", "corner"),
    [(True, "← better", "worse →", "Lower left is better."), (False, "← worse", "better →", "Upper left is better.")],
)
def test_pictures_say_on_which_side_better_is(lower_is_better: bool, left: str, right: str, corner: str) -> None:
    study = made.study(lower_is_better=lower_is_better)
    with drawing():
        drawn = forest(study, summaries(study))
    assert drawn is not None
    assert left in drawn.file and right in drawn.file
    blocks = [block for section in report(study).sections for block in section.blocks]
    captions = [block.caption for block in blocks if isinstance(block, Figures)]
    assert any(caption.startswith(corner) for caption in captions)
