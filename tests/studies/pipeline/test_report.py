"""Reports of pipelines, and the figures in them."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.studies.pipeline.measuring import read_result, values_in
from tinyllm.studies.pipeline.recipe import Measure
from tinyllm.studies.pipeline.report import show, stages_csv, write_report
from tinyllm.studies.pipeline.results import Column, PipelineResult, Sample, StageResult

BPB = Column(name="text bpb", metric="val/bpb", measure="text")
EXACT = Column(name="exact", metric="task/exact", measure="tasks")


def stage(name: str, seed: int, values: dict[str, float], **changes: object) -> StageResult:
    made = StageResult(
        name=name,
        program="train",
        seed=seed,
        path=f"stages/{name}_s{seed}_0",
        command=f"python -m tinyllm.train run.dir={name}",
        seconds=60.0,
        steps=10,
        tokens=1000,
        values=values,
        samples=[Sample(prompt="1+1?", text=f"{name} says <b>2</b>\n")],
        metric="val/loss",
        curve=[(5, 2.0), (10, 1.0)],
        counts={},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def result(*seeds: int) -> PipelineResult:
    stages = []
    for seed in seeds:
        stages.append(stage("language", seed, {BPB.name: 2.0 + seed}))
        nothing = {"samples": [], "metric": "", "curve": [], "steps": None, "tokens": None, "counts": {"pairs": 800}}
        stages.append(stage("pairs", seed, {}, program="pairs", **nothing))
        stages.append(stage("tools", seed, {BPB.name: 3.0 + seed, EXACT.name: 0.9 + seed / 100}))
    return PipelineResult(
        recipe="mine",
        command="python -m tinyllm.pipeline recipe=file recipe.path=mine.yaml",
        seeds=list(seeds),
        columns=[BPB, EXACT],
        stages=stages,
        talk="python -m tinyllm.chat run=stages/tools_s0_0",
        provenance={"code": "abc"},
        digests={"stages/tools_s0_0": {"metrics.jsonl": "123"}},
    )


def test_the_report_shows_every_stage_on_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(result(0, 2), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| language | 10 | 1.00k | 1:00 | 3 ± 1.4 | – |" in text
    assert "| pairs | 800 pairs | – | 1:00 | – | – |" in text
    assert "| tools | 10 | 1.00k | 1:00 | 4 ± 1.4 | 91.0 ± 1.4% |" in text
    assert "tools says \\<b>2\\</b>" in text and "python -m tinyllm.chat run=stages/tools_s0_0" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tools says &lt;b&gt;2&lt;/b&gt;" in page and "--arm-1:" in page and ">seed 2</button>" in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "task_1.svg", "curve_language.svg", "curve_tools.svg"
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(stages_csv(result(0, 2)))))
    assert rows[2] | {"exact": "0.9", "seed": "0"} == rows[2] and rows[0]["exact"] == ""
    show(result(0), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "steps", "time", "text", "bpb", "exact"]
    assert lines[2].split() == ["pairs", "800", "pairs", "1:00"] and lines[3].split()[-2:] == ["3", "90.0%"]
    assert lines[-1] == "talk to it: python -m tinyllm.chat run=stages/tools_s0_0"


def test_a_metric_that_an_evaluation_does_not_give(tmp_path: Path) -> None:
    file = tmp_path / "measure.json"
    assert read_result(file) is None
    file.write_text('{"val/bpb": 2.5, "split"', encoding="utf-8")  # what a killed process left
    assert read_result(file) is None
    file.write_text('a note\n{"val/bpb": 2.5, "split": "val"}\n', encoding="utf-8")
    found = read_result(file)
    assert found is not None
    measure = Measure(name="text", settings=(), shows={"bpb": "val/bpb"}, since=None)
    assert values_in(found, measure) == {"bpb": 2.5}
    with pytest.raises(UserError) as refused:
        values_in(found, replace(measure, shows={"bpb": "val/bbp"}))
    assert "no such metric (text: bpb: val/bbp): did you mean val/bpb?" in str(refused.value)
