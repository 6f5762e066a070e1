"""The page Compare: what is filled in becomes the command, the plan comes first, reports are shown cut off."""

import asyncio
import json
import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.studio.test_page_runs import EVIL, only, seen, until
from tests.support.run_folders import run_folder
from tests.support.studio import folder, requests, use
from tests.support.training_runs import SMALL, write_corpus
from tinyllm.errors import UserError
from tinyllm.studies.compare.plan import PlannedArm, PlannedRun, StudyPlan
from tinyllm.studio.comparison import Comparison, Varied, comparison_rows, comparison_words, plan_of, read_plan
from tinyllm.studio.program import Settings
from tinyllm.studio.studies import find_study, progress, report_of, studies
from tinyllm.utils.locks import try_lock

pytest.importorskip("nicegui", reason="needs the extra studio")

from nicegui import app

from tinyllm.studio import catalogue, comparison_form, page_compare
from tinyllm.studio.studio import Studio


def planned(**changes: Any) -> StudyPlan:
    """A plan of two arms with two seeds."""
    names = ("mha", "mqa")
    arms = [
        PlannedArm(
            name=name, settings=[f"attn={name}"], solved={}, mismatch=0.0, parameters=17_000, active_parameters=17_000,
            flops_per_token=100_000, kv_bytes_per_token=256, max_steps=100, tokens=1000, flops=10**8,
        )
        for name in names
    ]  # fmt: skip
    runs = [PlannedRun(arm=name, seed=seed, path=f"runs/{name}_{seed}") for seed in (1, 2) for name in names]
    plan = StudyPlan(
        question="Which?", command="python -m tinyllm.compare attn=mha,mqa", directory="outputs/compare/attn_1",
        metric="val/bpb", match="params", reference="mha", budget="tokens", amount=1000.0, seeds=[1, 2], parallel=1,
        arms=arms, runs=runs, others={}, tokens=4000, flops=4 * 10**8, minutes=None,
    )  # fmt: skip
    return replace(plan, **changes)


def study_folder(path: Path, plan: StudyPlan, *, report: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "plan.json").write_text(json.dumps(asdict(plan)))
    if report:
        (path / "study.json").write_text('{"runs": []}')
        (path / "report.html").write_text(report)
    return path


def test_what_is_filled_in_is_the_command_line() -> None:
    comparison = Comparison(
        varied=[Varied(key="attn", values=" mha, mqa,"), Varied()], shared="model=nano 'run.name=a b'"
    )
    comparison.draft.set("seeds", "2")
    assert comparison.arguments() == ["model=nano", "run.name=a b", "attn=mha,mqa", "seeds=2"]
    typed = shlex.split(comparison.command(Settings()))
    assert typed[-6:] == ["-m", "tinyllm.compare", "model=nano", "run.name=a b", "attn=mha,mqa", "seeds=2"]
    for wrong, what in (
        (Comparison(varied=[Varied(key="attn")]), "not complete"),
        (Comparison(varied=[Varied(values="1,2")]), "not complete"),
        (Comparison(shared="'"), "cannot be read"),
    ):
        with pytest.raises(UserError, match=what):
            wrong.arguments()


def test_the_form_is_that_of_conf() -> None:
    rows = {row.key: row for row in comparison_rows()}
    assert list(rows)[:4] == ["match", "budget", "budget.amount", "seeds"] and not {"out", "dry_run"} & rows.keys()
    assert "as many as a pilot" in rows["seeds"].meaning and rows["seeds"].default == "3"
    assert [name for name, _ in rows["budget"].options] == ["flops", "minutes", "tokens"]
    assert comparison_words()["match"] == ["params", "active_params", "flops", "kv_bytes", "none"]


@pytest.mark.parametrize("wrong", ["attn._target_=os.system", "hydra.run.dir=/tmp", "--config-dir=/", "out=/etc/x"])
def test_a_plan_of_forbidden_settings_starts_nothing(tmp_path: Path, wrong: str) -> None:
    with mock.patch("asyncio.create_subprocess_exec") as started, pytest.raises(UserError):
        asyncio.run(plan_of(["attn=mha,mqa", wrong], folder(tmp_path)))
    assert not started.called


@pytest.mark.slow
def test_the_plan_is_that_of_the_program_and_errors_are_its_words(tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}")
    given = [*(one for one in SMALL if "eval_every" not in one), *data, "trainer.max_steps=4", "attn=mha,mqa"]
    plan = asyncio.run(plan_of([*given, "seeds=2"], folder(tmp_path)))
    assert [arm.name for arm in plan.arms] == ["mha", "mqa"] and len(plan.runs) == 4
    assert plan.tokens == 4 * 4 * 4 * 16 and not (tmp_path / "outputs").exists()
    with pytest.raises(UserError, match=r"value not allowed \(seeds=two\): one of auto, or a number at least 1"):
        asyncio.run(plan_of([*given, "seeds=two"], folder(tmp_path)))


def test_a_study_shows_how_far_each_arm_is(tmp_path: Path) -> None:
    study = study_folder(tmp_path / "compare" / "attn", planned())
    run_folder(study / "runs" / "mha_1", records=100)
    run_folder(study / "runs" / "mqa_1", status="running", records=50)
    rows = {row.id: row for row in catalogue.Catalogue(tmp_path).rows()}
    [found] = studies(tmp_path)
    assert (found.id, found.status, found.has_report) == ("compare/attn", "stopped", False)
    mha, mqa = progress(found, rows)
    assert (mha.finished, mha.share, mqa.finished, mqa.share) == (1, 0.5, 0, 0.25)
    assert [row and row.status for _, row in mqa.runs] == ["lost", None]
    lock = try_lock(study / ".lock")
    assert lock is not None and studies(tmp_path)[0].status == "running"
    os.close(lock)
    (study / "study.json").write_text('{"runs": []}')
    (study / "report.html").write_text("<p>")
    os.utime(study / "plan.json", (1, 1))
    assert studies(tmp_path)[0].status == "finished"
    (study / "plan.json").write_text('{"arms": 1}')
    assert progress(studies(tmp_path)[0], rows) == [] and read_plan([]) is None and read_plan({"arms": [{}]}) is None


def test_reports_are_served_cut_off_and_from_nowhere_else(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    study_folder(outputs / "a b", planned(), report="<script>parent.stolen = 1</script>")
    secret = study_folder(tmp_path / "secret", planned(), report="secret")
    (outputs / "link").symlink_to(secret)
    linked = study_folder(outputs / "linked", planned(), report="x")
    (linked / "report.html").unlink()
    (linked / "report.html").symlink_to(secret / "report.html")
    for name in ("../secret", "link", "linked", "none", "a b/../../secret", "/etc", str(secret), "a\0b", "x" * 5000):
        assert report_of(outputs, name) is None, name
    assert find_study(outputs, "../secret") is None
    page_compare.serve_reports(Studio(settings=Settings(outputs=outputs)))
    served, missing, outside = requests(
        app, ("GET", "/reports/a%20b"), ("GET", "/reports/none"), ("GET", "/reports/..%2f..%2fsecret")
    )
    assert served.status_code == 200 and "stolen" in served.text
    policy = served.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy and "default-src 'none'" in policy and "same-origin" not in policy
    assert missing.status_code == outside.status_code == 404


def test_the_plan_comes_by_itself_before_the_start_and_a_change_takes_it_back(tmp_path: Path) -> None:
    missing = UserError("the data is not on this machine", hint='"Show the plan" fetches it')
    plans = [planned(), UserError("value not allowed (seeds=two)", hint="a number"), missing, planned()]
    started: list[Any] = []
    fetched: list[bool] = []

    async def plan(arguments: list[str], settings: Settings, *, fetch: bool) -> StudyPlan:
        fetched.append(fetch)
        outcome = plans.pop(0)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    async def story(user: Any) -> None:
        await user.open("/compare")
        assert seen(user, "plan-hint") and not seen(user, "start")
        only(user, "key 0").set_value("attn")
        only(user, "values 0").set_value(["mha", "mqa"])
        user.find(marker="shared").type("model=nano")
        assert only(user, "command").text.endswith("-m tinyllm.compare model=nano attn=mha,mqa")
        await until(lambda: only(user, "start").enabled)  # by itself
        assert only(user, "cost").text.startswith("2 arms, 4 runs, 1 at a time; 4.00k training tokens and 400 MFLOP")
        assert [row["arm"] for row in only(user, "arms").rows] == ["mha (reference)", "mqa"]
        assert shlex.split(only(user, "command").text)[-1] == f"out={tmp_path / 'outputs' / 'compare' / 'attn_1'}"
        await user.open("/compare")  # a reload shows the same, without planning anew
        assert only(user, "start").enabled and len(only(user, "arms").rows) == 2
        user.find(marker="key:seeds").type("two")
        await until(lambda: not only(user, "start").enabled)
        await until(lambda: "seeds=two" in only(user, "plan-problem").text)
        assert "seeds=two" in only(user, "problem:seeds").text and not only(user, "start").enabled
        user.find(marker="key:seeds").clear()
        await until(lambda: "not on this machine" in only(user, "plan-problem").text)
        user.find(marker="plan").click()
        await until(lambda: only(user, "start").enabled)
        assert fetched == [False, False, False, True] and plans == []
        with mock.patch(
            "tinyllm.studio.processes.Processes.start", lambda self, *args, path: started.append((args, path))
        ):
            user.find(marker="start").click()
            await until(lambda: bool(started))
        out = tmp_path / "outputs" / "compare" / "attn_1"
        assert started == [(("compare", ["model=nano", "attn=mha,mqa", f"out={out}"]), out)]
        study_folder(out, planned(question=EVIL), report="<p>")
        await user.open("/compare")
        await user.should_see(EVIL)
        await user.open("/compare?study=compare/attn_1")
        assert only(user, "title").text == EVIL
        assert only(user, "report").props["src"].startswith("/reports/compare/attn_1?")
        assert only(user, "report").props["sandbox"] == "allow-scripts"
        await user.open("/compare?study=../../etc")
        await user.should_see("No such comparison")

    with mock.patch.object(comparison_form, "plan_of", plan), mock.patch.object(comparison_form, "PAUSE_S", 0.1):
        use(story, folder(tmp_path))
