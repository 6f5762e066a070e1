"""The fit recovers a known law, its optimum is the true minimum, and caveats are reported."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, write_corpus
from tinyllm.errors import UserError
from tinyllm.studies.compare.results import Run
from tinyllm.studies.scaling.ladder import check_settings
from tinyllm.studies.scaling.law import (
    HUBER,
    FittedRun,
    Law,
    TokenCost,
    bootstrap,
    exponent,
    fit,
    isoflop_parabolas,
    optimum,
    price_of,
    with_interval,
)
from tinyllm.studies.scaling.report import optima_csv, runs_csv, sentences
from tinyllm.studies.scaling.study import ScalingStudy, Trained, study_of

LAW = Law(E=1.2, A=60.0, alpha=0.4, B=90.0, beta=0.38)
PRICE = TokenCost(factor=9.0, exponent=0.98)
BUDGETS = (1e12, 3e12, 1e13)
TINY = [setting for setting in SMALL if not setting.startswith("trainer.eval")]


def ladder(law: Law = LAW, *, noise: float = 0.0, seed: int = 0, away: float = 1.0, sizes: int = 5) -> list[FittedRun]:
    """Runs around the optimum of each budget, or around ``away`` times it, with relative noise in the losses."""
    random = np.random.default_rng(seed)
    runs = []
    for budget in BUDGETS:
        for factor in np.geomspace(away / 6, away * 6, sizes):
            parameters = int(optimum(law, PRICE, budget).parameters * factor)
            price = int(PRICE.flops(parameters))
            tokens = int(budget / price)
            loss = float(law.loss(parameters, tokens) * np.exp(noise * random.standard_normal()))
            runs.append(
                FittedRun(budget=budget, parameters=parameters, tokens=tokens, flops_per_token=price, loss=loss)
            )
    return runs


def huber_loss(law: Law, points: Sequence[FittedRun]) -> float:
    """Objective of the fit, implemented independently."""
    residuals = [abs(np.log(law.loss(point.parameters, point.tokens)) - np.log(point.loss)) for point in points]
    return sum(r**2 / 2 if r < HUBER else HUBER * (r - HUBER / 2) for r in residuals)


@pytest.mark.parametrize(
    "law",
    [
        LAW,
        Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28),  # Hoffmann et al.
        Law(E=0.5, A=20.0, alpha=0.7, B=1000.0, beta=0.5),
        Law(E=2.5, A=5.0, alpha=0.15, B=8.0, beta=0.2),
    ],
)
def test_fit_recovers_the_law(law: Law) -> None:
    fitted = fit(ladder(law))
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(fitted, name) == pytest.approx(getattr(law, name), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_noisy_fit_is_at_least_as_good_as_the_true_law(seed: int) -> None:
    points = ladder(noise=0.003, seed=seed)
    fitted = fit(points)
    assert huber_loss(fitted, points) <= huber_loss(LAW, points)
    for budget in BUDGETS:
        true, best = optimum(LAW, PRICE, budget), optimum(fitted, price_of(points), budget)
        assert best.parameters == pytest.approx(true.parameters, rel=0.1)
        assert best.loss == pytest.approx(true.loss, rel=0.01)


def test_one_outlier_hardly_moves_the_optimum() -> None:
    points = ladder(noise=0.001)
    before = optimum(fit(points), PRICE, BUDGETS[1]).parameters
    points[7] = replace(points[7], loss=1.2 * points[7].loss)
    assert optimum(fit(points), PRICE, BUDGETS[1]).parameters == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("law", [LAW, Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)])
@pytest.mark.parametrize("price", [PRICE, TokenCost(factor=6.0, exponent=1.0), TokenCost(factor=40.0, exponent=0.8)])
def test_optimum_agrees_with_brute_force(law: Law, price: TokenCost) -> None:
    for flops in (1e11, 1e14, 1e20):
        sizes = np.geomspace(1e2, 1e12, 400_001)
        losses = law.loss(sizes, flops / price.flops(sizes))
        found = optimum(law, price, flops)
        assert found.parameters == pytest.approx(sizes[losses.argmin()], rel=1e-3)
        assert found.loss == pytest.approx(losses.min(), rel=1e-9) and found.loss <= losses.min()
        assert found.tokens * price.flops(found.parameters) == pytest.approx(flops)


def test_optimum_at_six_flops_per_parameter_is_the_papers_formula() -> None:
    law, flops = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28), 5.76e23
    growth = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    found = optimum(law, TokenCost(factor=6.0, exponent=1.0), flops)
    assert found.parameters == pytest.approx(growth * (flops / 6) ** (law.beta / (law.alpha + law.beta)))
    assert found.tokens == pytest.approx((flops / 6) ** (law.alpha / (law.alpha + law.beta)) / growth)


def test_optimum_grows_with_its_exponent() -> None:
    sizes = [optimum(LAW, PRICE, flops).parameters for flops in (1e12, 1e15)]
    assert np.log(sizes[1] / sizes[0]) / np.log(1e3) == pytest.approx(exponent(LAW, PRICE))


def test_price_per_token() -> None:
    found = price_of(ladder())
    assert (found.factor, found.exponent) == (pytest.approx(9.0, rel=1e-2), pytest.approx(0.98, rel=1e-3))
    with pytest.raises(UserError, match="a scaling law needs more than one size"):
        price_of([point for point in ladder() if point.parameters == ladder()[0].parameters])


def test_parabolas_find_the_minimum() -> None:
    points = [
        replace(point, loss=2.0 + 0.1 * np.log(point.parameters / 2e5) ** 2)
        for point in ladder()
        if point.budget < 1e13
    ]
    bent_down = [replace(point, loss=4.0 - point.loss / 2) for point in points]
    parabolas = isoflop_parabolas(points, PRICE)
    assert [valley.budget for valley in parabolas] == [1e12, 3e12]
    for valley in parabolas:
        assert valley.parameters == pytest.approx(2e5) and valley.loss == pytest.approx(2.0)
        assert valley.tokens * PRICE.flops(valley.parameters) == pytest.approx(valley.budget)
        sizes = [point.parameters for point in points if point.budget == valley.budget]
        assert valley.inside == (min(sizes) <= 2e5 <= max(sizes))
    assert isoflop_parabolas(bent_down, PRICE) == [] and isoflop_parabolas(points[:2], PRICE) == []
    moved = isoflop_parabolas([replace(point, loss=2.0 + np.log(point.parameters) ** 2) for point in points], PRICE)
    assert not any(valley.inside for valley in moved)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(UserError, match="5 runs are too few to fit"):
        fit(ladder()[:5])


def test_intervals_contain_the_optimum_and_widen_with_noise() -> None:
    widths = []
    for noise in (0.0, 0.001, 0.01):
        points = ladder(noise=noise, seed=1)
        law, price = fit(points), price_of(points)
        laws = bootstrap(points, law, draws=40, seed=0)
        assert laws[:5] == bootstrap(points, law, draws=5, seed=0)
        best = with_interval(optimum(law, price, 3e13), laws, price)
        assert best.parameters_between is not None
        low, high = best.parameters_between
        widths.append(high / low)
        assert low <= optimum(LAW, PRICE, 3e13).parameters * 1.001 and low <= best.parameters * 1.001
    assert widths[0] < 1.01 and widths[0] < widths[1] < widths[2]


@pytest.mark.exhaustive
def test_intervals_have_about_their_nominal_coverage() -> None:
    """Over 200 noisy ladders, the 95 % interval of N* contains the true value in at least 88 %."""
    covered = 0
    for seed in range(200):
        points = ladder(noise=0.003, seed=seed)
        law, price = fit(points), price_of(points)
        best = with_interval(optimum(law, price, 1e13), bootstrap(points, law, draws=200, seed=seed), price)
        assert best.parameters_between is not None
        covered += best.parameters_between[0] <= optimum(LAW, PRICE, 1e13).parameters <= best.parameters_between[1]
    assert covered >= 176


def study(points: Sequence[FittedRun], *, targets: Sequence[float] = (), train_tokens: int = 10**12) -> ScalingStudy:
    runs = [
        Trained(
            size=f"n{point.parameters}",
            budget=point.budget,
            parameters=point.parameters,
            tokens=point.tokens,
            flops_per_token=point.flops_per_token,
            run=Run(
                arm=f"n{point.parameters}", seed=1, path=f"runs/{i}", command="", status="finished", value=point.loss
            ),
        )
        for i, point in enumerate(points)
    ]
    runs.append(replace(runs[0], run=Run(arm="lost", seed=1, path="x", command="", status="failed", error="disk full")))
    known = {"command": "c", "draws": 20, "seed": 0, "provenance": {}}
    return study_of(runs, targets=targets, train_tokens=train_tokens, **known)


def test_caveats_of_a_study() -> None:
    good = study(ladder(noise=0.001))
    assert good.notes == ["lost, seed 1, failed: disk full"]
    assert good.misfit == pytest.approx(0.001, abs=0.0007)
    far = study(ladder(noise=0.001), targets=[5e13]).notes
    assert any("5e+13 FLOPs is 5 times the largest trained budget" in note for note in far)
    small = study(ladder(noise=0.001, away=1 / 30)).notes
    assert any("at 1e+12 FLOPs the largest size has the lowest loss" in note for note in small)
    assert any("lies outside the trained sizes" in note for note in small)
    large = study(ladder(noise=0.001, away=30)).notes
    assert any("the smallest size has the lowest loss" in note for note in large)
    repeated = study(ladder(noise=0.001), train_tokens=10**6).notes
    assert any("sees its training data" in note for note in repeated)
    nothing = study(ladder(replace(LAW, E=1e-4), noise=0.0)).notes
    assert any("do not determine the irreducible loss E" in note for note in nothing)


def test_sentences_and_csv_files() -> None:
    found = study(ladder(), targets=[2e13])
    shown = sentences(found)
    assert shown[0].startswith("L(N, D) = 1.2 + 60/N^0.4 + 90/D^0.38 nats per token, fitted to 15 runs")
    assert [line.partition(" FLOPs: ")[0] for line in shown[3:7]] == ["1e+12", "3e+12", "1e+13", "2e+13"]
    rows = list(csv.DictReader(io.StringIO(optima_csv(found))))
    assert [float(row["parameters"]) for row in rows] == [best.parameters for best in found.optima]
    runs = list(csv.DictReader(io.StringIO(runs_csv(found))))
    assert [row["loss"] for row in runs] == [*(repr(point.loss) for point in ladder()), ""]


@pytest.mark.parametrize(
    ("keys", "typed", "said"),
    [
        ({"budgets": [1e12]}, (), "invalid budgets"),
        ({"budgets": [3e12, 1e12]}, (), "in ascending order"),
        ({"budgets": [0.0, 1e12]}, (), "invalid budgets"),
        ({"targets": [2e14]}, (), r"too far to extrapolate \(scaling.targets=2e\+14\): the budgets range from 1e\+12"),
        ({"targets": [1e9]}, (), "too far to extrapolate"),
        ({"tokens_per_parameter": [5, 2]}, (), "not a range"),
        ({}, ("trainer.max_steps",), r"the key has no effect in a scaling study \(trainer.max_steps\)"),
        ({}, ("run.dir",), "every run has its own directory"),
    ],
)
def test_settings_that_the_study_refuses(keys: dict[str, Any], typed: tuple[str, ...], said: str) -> None:
    known = {"budgets": list(BUDGETS), "targets": [1e14], "tokens_per_parameter": [2, 500], "reach": 10.0}
    check_settings(known, frozenset())
    with pytest.raises(UserError, match=said):
        check_settings(known | keys, frozenset(typed))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("scaling.sizes=large",), "not a list of sizes (scaling.sizes=large)"),
        (('scaling.sizes=["model.d_model=65"]',), "model.d_model=65"),
        (("scaling.budgets=[1e4,1e5]",), "too few sizes at a budget (scaling.budgets=10000)"),
        (('scaling.sizes=["model.n_layers=1","model.n_layers=2","model.n_layers=3"]', "scaling.budgets=[1e5,1e6]"),
         "the budget is too small (scaling.budgets=100000)"),
    ],
)  # fmt: skip
@pytest.mark.every(2)
def test_mistakes_are_one_line(settings: tuple[str, ...], said: str, tmp_path: Path, call: Call) -> None:
    text = write_corpus(tmp_path / "words.txt")
    answer = call("scaling", *TINY, "dataset=text", f"dataset.path={text}", *settings)
    assert answer.code == 2 and said in answer.err and len(answer.err.splitlines()) == 1, answer
    assert answer.made == []


@pytest.mark.slow
def test_tiny_ladder_is_trained_once(tmp_path: Path, call: Call) -> None:
    sizes = ",".join(f'"model.d_model={width} model.d_ff={2 * width}"' for width in (8, 16, 32))
    given = (
        *(setting for setting in TINY if not setting.startswith("model.d_")),
        *("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}", f"scaling.sizes=[{sizes}]"),
        *("scaling.budgets=[1e7,3e7]", "scaling.draws=100", "scaling.targets=[1e8]", "scaling.out=study"),
    )
    first = call("scaling", *given)
    assert first.code == 0, first
    assert "[6/6]" in first.out and "1e+08 FLOPs is 3.33 times the largest trained budget" in first.out
    place = tmp_path / "empty" / "study"
    files = {
        path.relative_to(place): path.read_bytes()
        for path in place.rglob("*")
        if path.suffix in (".csv", ".svg", ".md")
    }
    assert {str(name) for name in files} == {
        "scaling.md", "runs.csv", "optima.csv", "figures/losses.svg", "figures/frontier.svg",
    }  # fmt: skip
    found = json.loads((place / "scaling.json").read_text(encoding="utf-8"))
    for trained in found["runs"]:
        log = (place / trained["run"]["path"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(log[-1])
        assert trained["run"]["value"] == last["val/loss"] and trained["tokens"] == last["tokens"]
        assert last["flops"] <= trained["budget"] < last["flops"] + 4 * 16 * trained["flops_per_token"]
    again = call("scaling", *given)
    assert again.code == 0 and "6 of 6 runs have finished already" in again.out and "[" not in again.out
    assert all((place / name).read_bytes() == content for name, content in files.items())
    shutil.rmtree(place / found["runs"][0]["run"]["path"])
    third = call("scaling", *given)
    assert "5 of 6 runs have finished already" in third.out and "[1/1]" in third.out
    assert (place / "optima.csv").read_bytes() == files[Path("optima.csv")]
