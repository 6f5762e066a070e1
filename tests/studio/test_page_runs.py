"""The page Runs: the table lives, filters and selects, and the address holds what is shown."""

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.datastructures import QueryParams

from tests.support.run_folders import record, run_folder
from tests.support.studio import folder, use
from tinyllm.errors import UserError
from tinyllm.loggers.event_log import EventLog
from tinyllm.runs.layout import EVENTS
from tinyllm.studies.report.theme import style

pytest.importorskip("nicegui", reason="needs the extra studio")

from nicegui import ui

from tinyllm.studio import catalogue, chart, page_runs, run_actions, run_facts
from tinyllm.studio.processes import Outcome, Processes
from tinyllm.studio.view import View

EVIL = "<img src=x onerror=alert(1)></script>{{ 7 * 7 }}"


@pytest.fixture(autouse=True)
def no_cache() -> Any:
    with mock.patch.object(catalogue, "FRESH_S", 0.0), mock.patch.object(page_runs, "REFRESH_S", 0.05):
        yield


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; an element that is not visible yet is waited for."""
    while True:
        with contextlib.suppress(AssertionError):
            if condition():
                return
        await asyncio.sleep(0.02)


def only(user: Any, marker: str) -> Any:
    [element] = user.find(marker=marker).elements
    return element


def seen(user: Any, marker: str) -> bool:
    with contextlib.suppress(AssertionError):
        return bool(user.find(marker=marker).elements)
    return False


def test_the_address_holds_the_state_of_the_page() -> None:
    view = View(
        run="a/b c", chosen=["x", "y&z"], metrics=["val/loss", "a b"], axis="flops", smooth=0.25, log=True, find="lr<1",
        status="lost", sort="loss", descending=False, tab="log", other="d",
    )  # fmt: skip
    assert View.read(QueryParams(view.url().partition("?")[2])) == view
    assert View().url() == "/runs"
    wrong = "x=__class__&sort=_&tab=../..&smooth=nan&order=1"
    assert View.read(QueryParams(wrong)) == View(descending=False)
    assert View.read(QueryParams("smooth=7")).smooth < 1 and View.read(QueryParams("smooth=x")).smooth == 0


def test_the_table_is_live_and_choosing_runs_draws_them(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"

    async def story(user: Any) -> None:
        await user.open("/runs")
        await user.should_see(f"No runs below {outputs} yet.")
        assert not seen(user, "runs") and not seen(user, "find")
        run_folder(outputs / "day" / "first", records=3)
        await until(lambda: seen(user, "runs"))
        table = only(user, "runs")
        assert [(row["name"], row["folder"], row["status"]) for row in table.rows] == [("first", "day", "finished")]
        run_folder(outputs / "day" / EVIL.replace("/", ""), status="failed", reason=EVIL)
        await until(lambda: len(table.rows) == 2)
        assert table.rows[0]["note"] == EVIL
        user.find(marker="find").type("loss<1.98 first")
        await until(lambda: [row["name"] for row in table.rows] == ["first"])
        user.find(marker="find").clear().type("loss<x")
        await until(lambda: "no number to compare with" in str(only(user, "find").props["error-message"]))
        user.find(marker="find").clear()
        await until(lambda: len(table.rows) == 2)
        await user.open("/runs?with=day/first&metric=train/loss&x=tokens")
        await until(lambda: bool(only(user, "chart").options["series"]))
        line, _ = only(user, "chart").options["series"]
        assert [point["value"] for point in line["data"]] == [[100, 1.99], [200, 1.98], [300, 1.97]]
        assert [row["id"] for row in only(user, "runs").selected] == ["day/first"]
        with (outputs / "day" / "first" / "metrics.jsonl").open("a") as file:
            file.write(record(4))
        await until(lambda: len(only(user, "chart").options["series"][0]["data"]) == 4)
        assert only(user, "chart").props["aria-label"] == "train/loss over tokens, 1 run"

    use(story, folder(tmp_path))


def test_a_run_shows_its_files_as_text_and_what_can_be_done(tmp_path: Path) -> None:
    config = f"key: '{EVIL}'\n"
    path = run_folder(tmp_path / "outputs" / "run", status="interrupted", records=2, config=config, host=EVIL)
    run_folder(tmp_path / "outputs" / "other", records=2, config="key: 1\n")
    log = EventLog(path / EVENTS)
    log.on_sample(2, EVIL)
    log.on_message(EVIL)
    (path / "checkpoints" / "step-000002").mkdir(parents=True)
    (path / "checkpoints" / "last").write_text("step-000002\n")
    resumed: list[Path] = []
    listed = catalogue.ListedRun(path)
    assert {"key": "key", "value": EVIL} in run_facts.settings(listed, None)
    assert {"key": "host", "value": EVIL} in run_facts.machine(listed)
    assert [text.text for text in run_facts.log(path)] == [EVIL]
    [checkpoint] = run_facts.checkpoints(path)
    assert (checkpoint["key"], checkpoint["mark"]) == ("2", "last")

    async def story(user: Any) -> None:
        await user.open("/runs?run=run")
        assert EVIL in [label.text for label in user.find(ui.label).elements]
        await user.open("/runs?run=run&tab=settings&other=other")
        [table] = user.find(ui.table).elements
        assert [(row["section"], row["value"], row["other"]) for row in table.rows if row["key"] == "key"] == [
            ("configuration", EVIL, "1")
        ]
        shown = {name: only(user, name).visible for name in ("resume", "export")}
        assert shown == {"resume": True, "export": True}
        with mock.patch("tinyllm.studio.processes.Processes.resume", lambda self, run: resumed.append(run)):
            user.find(marker="resume").click()
            await until(lambda: resumed == [path])
        user.find(marker="new run like this").click()
        await until(lambda: user.back_history[-1] == f"/?{urlencode({'from': path})}")
        await user.open("/runs?run=../../etc")
        await user.should_see("No such run")

    use(story, folder(tmp_path))


def test_a_run_tells_how_its_export_ended(tmp_path: Path) -> None:
    path, out = run_folder(tmp_path / "outputs" / "run"), tmp_path / "outputs" / "run-hf"
    processes = Processes(folder(tmp_path))
    outcomes = [Outcome(alive=True), Outcome(alive=False, code=2, error=EVIL), Outcome(alive=False, code=0)]

    async def story(user: Any) -> None:
        await user.open("/runs?run=run")
        assert not seen(user, "exported")
        with mock.patch.object(sys, "executable", "true"):
            processes._own[processes.start("export", [f"run={path}", f"out={out}"], path=out).id].wait()
        shown = []
        for outcome in outcomes:
            out.mkdir(exist_ok=True)
            with mock.patch.object(Processes, "outcome", lambda self, start, outcome=outcome: outcome):
                await user.open("/runs?run=run")
                shown.append(only(user, "exported").text)
        assert shown == [
            f"Exporting to {out} …",
            f"The export failed: {EVIL}",
            f"Exported for Hugging Face transformers: {out}",
        ]

    use(story, folder(tmp_path))


def test_every_word_of_a_filter_fits(tmp_path: Path) -> None:
    run_folder(tmp_path / "lr=0.1_a", records=2)
    run_folder(tmp_path / "b", status="failed", records=5, config="optimizer:\n  lr: 0.01\n")
    runs = catalogue.Catalogue(tmp_path)

    def found(text: str, status: str = "") -> set[str]:
        return {row.id for row in page_runs.filtered(runs.rows(), text, status, runs)}

    both = {"lr=0.1_a", "b"}
    assert found("") == found("pydocs") == found("seed~") | both == both
    assert found("lr=0.1") == {"lr=0.1_a"} == found("FINISHED") == found("status!=failed") == found("", "finished")
    assert found("optimizer.lr>0.005") == {"b"} == found("train/loss<1.96 pydocs")
    assert found("optimizer.lr>1 b") == set()
    with pytest.raises(UserError, match="no number"):
        found("loss<x")


def curve(y: list[float]) -> chart.Curve:
    return chart.Curve(name="c", style=style(1), x=np.arange(len(y), dtype=float), y=np.array(y))


def test_gaps_spikes_and_single_points_stay_visible() -> None:
    y = [1.0] * 100_000
    y[777], y[5000], y[5002] = 50.0, math.nan, math.nan
    line, marks = chart.chart_options([curve(y)], axis="step", title="", dark=False)["series"]
    assert len(line["data"]) <= 4 * chart.COLUMNS + 2 and line["symbol"] == "none"
    values = [point["value"] if isinstance(point, dict) else point for point in line["data"]]
    assert max(value for _, value in values if value is not None) == 50.0
    assert None in [value for _, value in values]
    assert [mark["coord"][0] for mark in marks["markPoint"]["data"]] == [5000.0, 5002.0]
    lonely = curve([math.nan, 1.0, math.nan] + [2.0] * 90)
    line, _ = chart.chart_options([lonely], axis="step", title="", dark=True)["series"]
    assert [point["value"] for point in line["data"] if isinstance(point, dict)] == [[1.0, 1.0]]


def test_a_zoomed_chart_has_every_point_of_its_window_and_smoothing_keeps_the_records() -> None:
    y = list(np.random.default_rng(0).random(50_000))
    line, _ = chart.chart_options([curve(y)], axis="step", title="", dark=False, window=(50, 52))["series"]
    at = [point[0] for point in line["data"]]
    assert set(range(25_000, 26_000)) <= set(at) and len(at) < 2500 and at == sorted(at)
    average, raw, _ = chart.chart_options([curve(y)], axis="step", title="", dark=False, smooth=0.9)["series"]
    assert raw["lineStyle"]["opacity"] < 1 and max(v for _, v in average["data"]) < max(v for _, v in raw["data"])
    line, _ = chart.chart_options([curve([1, 0, 4])], axis="step", title="", dark=False, log=True)["series"]
    points = [point["value"] if isinstance(point, dict) else point for point in line["data"]]
    assert points == [[0, 1], [1, None], [2, 4]]


def test_a_chart_of_many_runs_stays_small_and_holds_no_code_of_a_run() -> None:
    y = list(np.random.default_rng(0).random(1000))
    options = chart.chart_options([curve(y)] * 100, axis="tokens", title=EVIL, dark=False)
    assert sum(len(line["data"]) for line in options["series"]) <= 1.1 * chart.MOST_POINTS

    def keys(node: Any) -> set[str]:
        if isinstance(node, dict):
            return set(node) | {key for value in node.values() for key in keys(value)}
        return {key for value in node for key in keys(value)} if isinstance(node, list) else set()

    assert {key for key in keys(options) if key.startswith(":")} == {":formatter"}


def test_texts_of_a_run_are_bounded_and_printable(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run")
    (tmp_path / "run.log").write_bytes(b"\x1b[31m" + b"x" * 100_000 + b"\xff\r\nlast\n")
    [text] = run_facts.log(path)
    assert len(text.text) < 70_000 and text.text.endswith("\ufffd\nlast") and text.text.startswith("…")
    (tmp_path / "run.log").unlink()
    (tmp_path / "run.log").symlink_to("/etc/passwd")
    assert run_facts.log(path) == [] == run_facts.samples(path) == run_facts.checkpoints(path)
    assert run_facts.clock(1e300) == "?"
    assert run_actions.free_name(path).name == "run-hf"
    (tmp_path / "run-hf").mkdir()
    assert run_actions.free_name(path).name == "run-hf-2"
