"""Reports of untrusted studies: texts are shown literally, and files that no report wrote are left alone."""

import csv
import io
import json
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.support import made_study as made
from tinyllm.errors import UserError
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import show, write_report
from tinyllm.studies.report.csv_files import csv_files
from tinyllm.studies.report.writing import write_files

CONTROL = "\x00\x07\x08\x1b[31m\x7f\x9b\u200f\u202e\u2066\ufeff\ud800\ufffe"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)
FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", " \t=1", "＝1", "-")


def everywhere(value: Any, text: str) -> Any:
    """The same data with ``text`` appended to every string in it."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, dict):
        return {key: everywhere(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: everywhere(getattr(value, field.name), text) for field in fields(value)})
    return value


def hostile() -> Study:
    """Two arms with control characters in every text except the words that the program interprets."""
    study = everywhere(made.study(arms=2, seeds=2), CONTROL)
    plain = made.study(arms=2, seeds=2)
    runs = [replace(run, status=other.status) for run, other in zip(study.runs, plain.runs, strict=True)]
    words = {name: getattr(plain, name) for name in ("metric", "match", "budget", "trial_metric")}
    return replace(study, runs=runs, **words)


@pytest.mark.slow
def test_control_characters_are_spelled_out_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(hostile(), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".html", ".md", ".csv", ".svg", ".json"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert FORBIDDEN.findall(text.replace("\n", "").replace("\t", "")) == [], path
    for path in tmp_path.glob("figures/*.svg"):
        ET.fromstring(path.read_text(encoding="utf-8"))
    assert r"\x1b[31m" in (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\\\", "\\").replace("\\[", "[")
    show(hostile(), tmp_path)
    shown = capsys.readouterr().out
    assert FORBIDDEN.findall(shown) == [] and r"\x1b[31m" in shown


@pytest.mark.parametrize("name", FORMULAS)
def test_no_csv_cell_is_a_formula(name: str) -> None:
    study = made.study(arms=2, seeds=2)
    names = {"gqa": name}
    arms = [replace(arm, name=names.get(arm.name, arm.name), settings=[name]) for arm in study.arms]
    runs = [replace(run, arm=names.get(run.arm, run.arm), error=name, command=name) for run in study.runs]
    changed = replace(
        study, arms=arms, runs=runs, differences=[replace(difference, arm=name) for difference in study.differences]
    )
    cells = [cell for text in csv_files(changed).values() for row in csv.reader(io.StringIO(text)) for cell in row]
    assert any(cell.startswith("'") for cell in cells)
    for cell in cells:
        if cell.strip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")):
            float(cell)  # a number, which stays one


def test_files_that_no_report_wrote_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    mine = tmp_path / "figures" / "mine.svg"
    mine.write_text("mine", encoding="utf-8")
    write_files(tmp_path, {"report.md": "1", "tuning.csv": "1", "figures/a.svg": "1"})
    write_files(tmp_path, {"report.md": "2", "figures/b.svg": "2"})
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".report.json", "report.md", "figures/b.svg", "figures/mine.svg"}
    assert mine.read_text(encoding="utf-8") == "mine"
    with pytest.raises(UserError, match="the report would overwrite a file that no report wrote"):
        write_files(tmp_path, {"report.md": "3", "figures/mine.svg": "3"})
    assert (mine.read_text(encoding="utf-8"), (tmp_path / "report.md").read_text(encoding="utf-8")) == ("mine", "2")


def test_forged_listing_removes_no_other_files(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.txt", tmp_path / "study"
    outside.write_text("mine", encoding="utf-8")
    (inside / "runs").mkdir(parents=True)
    (inside / "runs" / "run.json").write_text("{}", encoding="utf-8")
    listed = ["../outside.txt", str(outside), "runs/run.json", "study.yaml", 5, None, ["a"], "..", "x" * 5000 + ".md"]
    (inside / "study.yaml").write_text("arms: {}")
    (inside / "folder.md").mkdir()
    (inside / ".report.json").write_text(json.dumps([*listed, "figures/../../outside.svg", "a\0.md", "folder.md"]))
    write_files(inside, {"report.md": "1"})
    assert (inside / "study.yaml").is_file() and (inside / "folder.md").is_dir()
    assert outside.exists() and (inside / "runs" / "run.json").exists()


def test_pictures_are_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere, study = tmp_path / "elsewhere", tmp_path / "study"
    elsewhere.mkdir()
    study.mkdir()
    (study / "figures").symlink_to(elsewhere)
    with pytest.raises(UserError, match="would be written through a symbolic link"):
        write_files(study, {"figures/a.svg": "1"})
    assert list(elsewhere.iterdir()) == []
