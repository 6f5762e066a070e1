"""A comparison in a terminal and in a pipe, and studies with missing parts."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import made_study as made
from tests.support import read_report as read
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import show, write_report
from tinyllm.studies.report.csv_files import csv_files


def without_runs() -> Study:
    study = made.study(arms=3)
    runs = [made.failed(run.arm, 0, run.seed, "killed") for run in study.runs]
    return replace(study, runs=runs, differences=[], verdicts=["nothing can be said"])


def bare() -> Study:
    """The least a study can hold: nothing tuned, probed, matched or measured, no versions, one seed, another metric."""
    study = made.study(arms=3, seeds=1, metric="val/loss", match="none", match_by=[], provenance={}, notes=[])
    arms = [
        replace(arm, mismatch=None, solved={}, tuned={}, trials=[], probes={}, decode_tokens_per_s=None)
        for arm in study.arms
    ]
    runs = [replace(run, sha256={}, tokens_per_s=None, peak_memory_bytes=None, records=[]) for run in study.runs]
    return replace(study, arms=arms, runs=runs)


def crowded() -> Study:
    """Twelve arms, with a reference that is not the first."""
    study = made.study(arms=12)
    differences = [made.difference(arm.name, "mla", study.runs) for arm in study.arms if arm.name != "mla"]
    return replace(study, reference="mla", differences=differences)


def equal() -> Study:
    """Arms with the same cost and the same results."""
    study = made.study(arms=3, seeds=2)
    runs = [replace(study.runs[seed - 1], arm=arm.name, seed=seed) for arm in study.arms for seed in (1, 2)]
    arms = [replace(study.arms[0], name=arm.name) for arm in study.arms]
    differences = [
        replace(difference, mean=0.0, sd=0.0, low=0.0, high=0.0, p=1.0, p_corrected=1.0, detectable=0.0, seeds_needed=2)
        for difference in study.differences
    ]
    return replace(study, arms=arms, runs=runs, differences=differences)


def evaluated_once() -> Study:
    """One evaluation per run."""
    study = made.study(arms=2)
    return replace(study, runs=[replace(run, records=run.records[-1:]) for run in study.runs])


def renamed(name: str) -> Study:
    study = made.study(arms=1)
    return replace(study, reference=name, arms=[made.arm(name, 0)], runs=[made.run(name, 0, 1)])


STUDIES = {
    "one arm": lambda: made.study(arms=1),
    "no run": without_runs,
    "bare": bare,
    "crowded": crowded,
    "equal": equal,
    "one evaluation": evaluated_once,
    "no seed in common": lambda: made.study(arms=2, differences=[made.difference("gqa", "mha", [])]),
    "another script": lambda: renamed("注意機構" * 20),
}


@pytest.mark.parametrize("name", STUDIES)
def test_terminal_and_csv_of_a_study_with_gaps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = STUDIES[name]()
    show(study)
    shown = capsys.readouterr().out
    assert all(arm.name in shown for arm in study.arms)
    assert "None" not in shown and "nan" not in shown
    assert all("None" not in text for text in csv_files(study).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_report_of_a_study_with_gaps(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]()
    write_report(study, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for word in ("None", "nan", "NaN", "inf"):
        assert f">{word}<" not in html and f" {word} " not in html
    assert all(arm.name in html for arm in study.arms)
    sections = {value for tag, name, value in read.Page(html).attributes if (tag, name) == ("section", "id")}
    assert {"arms", "seeds", "matching", "runs", "statistics", "reproduce"} <= sections
    assert ("tuning" in sections, "probes" in sections) == (name != "bare", name != "bare")


def test_pipe_gets_whole_lines_without_colours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "attn=mla ffn=swiglu " + "model.n_layers=12 " * 12 + "end"
    study = made.study(arms=2, verdicts=["a long verdict " * 20 + "end of it"])
    arms = [study.arms[0], replace(study.arms[1], name=name)]
    show(replace(study, arms=arms, runs=[], differences=[made.difference(name, "mha", [])]), tmp_path)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "…" not in shown
    lines = shown.splitlines()
    assert any(name in line and line.rstrip().endswith("397") for line in lines)
    assert any(line.endswith("end of it") for line in lines)
    assert any(line.startswith("report: ") and line.endswith("report.html") for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_narrow_terminal_gets_two_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    show(made.study(arms=4, question="Which?"))
    shown = terminal.getvalue()
    assert shown.count("mqa ") >= 2 and "…" not in shown and "╭" in shown
    assert "1.8459 ± 0.0022" in shown and "+0.0111 ± 0.0160" in shown and "1.04M" in shown


def test_every_number_in_the_terminal_is_the_studys(capsys: pytest.CaptureFixture[str]) -> None:
    study = made.study(arms=3)
    show(study)
    lines = capsys.readouterr().out.splitlines()
    row: dict[str, Any] = {line.split()[0]: line.split() for line in lines if line.strip()}
    found = study.differences[0]
    assert found.high is not None and found.p_corrected is not None
    assert row["gqa"][4:7] == [f"{found.mean:+.4f}", "±", f"{found.high - found.mean:.4f}"]
    assert row["gqa"][7:9] == [f"{found.p_corrected:.3f}", "3"]
    assert row["gqa"][9:] == ["1.04M", "7.09M", "1,024", "372", "MB", "44,197", "397"]
