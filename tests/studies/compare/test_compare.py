"""``python -m tinyllm.compare``, from the command line to the study."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.support.elsewhere import Elsewhere, wait_for
from tests.support.fixtures import Answer, Call
from tests.support.training_runs import SMALL, metrics, write_corpus
from tinyllm.studies.compare import run_pool
from tinyllm.studies.compare.measurements import decode_speed
from tinyllm.studies.compare.run_ledger import speed_of
from tinyllm.studies.compare.seed_planning import FEWEST, PILOT

Compare = Callable[..., Answer]
STEPS = 4
SHORT = (
    *(one for one in SMALL if not one.startswith("trainer.eval_every")),
    *(f"budget.amount={STEPS * 4 * 16}", "seeds=2", "evaluations=2"),
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the runs that a comparison starts; each trains in a fork of this process, which starts faster."""
    labels: list[str] = []

    def run(job: run_pool.PooledRun, *others: object) -> int:
        labels.append(job.label)
        job.path.parent.mkdir(parents=True, exist_ok=True)
        answer = Elsewhere(*job.arguments, first=GlobalHydra.instance().clear).answer()
        job.log.write_text(answer.out + answer.err)
        return answer.code

    monkeypatch.setattr(run_pool, "train", run)
    return labels


@pytest.fixture
def compare(call: Call, tmp_path: Path, started: list[str]) -> Compare:
    """The program on a small text, with the study directory ``out``."""
    text = write_corpus(tmp_path / "words.txt", n_words=400)
    given = ("dataset=text", f"dataset.path={text}", *SHORT, f"out={tmp_path / 'out'}")
    return lambda *settings: call("compare", *given, *settings)


def study(tmp_path: Path) -> dict[str, Any]:
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.slow
def test_arms_are_matched_and_trained_once(compare: Compare, tmp_path: Path, started: list[str]) -> None:
    out = tmp_path / "out"
    answer = compare("attn=mha,mqa")
    assert answer.code == 0, answer
    assert started == [f"{arm}, seed {seed}" for seed in (1337, 1338) for arm in ("mha", "mqa")]
    found = study(tmp_path)
    mha, mqa = found["arms"]
    assert abs(mqa["account"]["parameters"] / mha["account"]["parameters"] - 1) <= 0.01 and mqa["solved"]
    assert [run["status"] for run in found["runs"]] == ["finished"] * 4
    for run in found["runs"]:
        records = metrics(out / run["path"])
        assert run["value"] == records[-1]["val/bpb"] and records[-1]["step"] == STEPS
        assert [one["step"] for one in run["records"]] == [2, 4]
    values = {(run["arm"], run["seed"]): run["value"] for run in found["runs"]}
    [difference] = found["differences"]
    pairs = [values["mqa", seed] - values["mha", seed] for seed in (1337, 1338)]
    assert difference["mean"] == pytest.approx(sum(pairs) / 2, abs=1e-12)
    plan = json.loads((out / "plan.json").read_text())
    assert sorted((run["arm"], run["seed"], run["path"]) for run in plan["runs"]) == sorted(
        (run["arm"], run["seed"], run["path"]) for run in found["runs"]
    )
    files = {path: path.read_bytes() for path in out.glob("*.*")}
    assert {path.name for path in files} >= {"report.html", "report.md", "arms.csv", "study.json"}

    started.clear()
    assert compare("attn=mha,mqa").code == 0
    assert started == [] and {path: path.read_bytes() for path in files} == files

    assert compare("attn=mha,mqa,gqa").code == 0
    assert started == ["gqa, seed 1337", "gqa, seed 1338"]
    assert len(study(tmp_path)["runs"]) == 6


@pytest.mark.slow
def test_a_dry_run_shows_the_cost_and_trains_nothing(compare: Compare, tmp_path: Path, started: list[str]) -> None:
    answer = compare("attn=mha,mqa", "dry_run=true", "--json")
    plan = json.loads(answer.out)
    assert answer.code == 0 and started == [] and not (tmp_path / "out").exists()
    assert plan["reference"] == "mha" and plan["seeds"] == [1337, 1338] and plan["others"] == {}
    mha, mqa = plan["arms"]
    assert (mha["max_steps"], mha["tokens"]) == (STEPS, STEPS * 4 * 16) and mha["solved"] == {} != mqa["solved"]
    assert plan["tokens"] == 4 * STEPS * 4 * 16 and plan["flops"] == 2 * (mha["flops"] + mqa["flops"])
    assert [(run["arm"], run["seed"]) for run in plan["runs"]] == [
        (arm, seed) for seed in (1337, 1338) for arm in ("mha", "mqa")
    ]
    assert " dry_run=" not in plan["command"] and plan["command"].startswith("python -m tinyllm.compare ")
    unknown = compare("attn=mha,mqa", "dry_run=true", "seeds=auto", "tune=optimizer.lr=1e-5,1e-2")
    last = unknown.out.splitlines()[-1]
    assert last == (
        "2 arms, as many runs as a pilot shows are needed, 1 at a time; before that 4 short runs to tune; before that"
        " 10 short runs of the pilot"
    )
    assert started == [] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_with_changed_files_is_an_error(compare: Compare, tmp_path: Path, started: list[str]) -> None:
    assert compare("attn=mha,mqa", "seeds=1").code == 0
    before = (tmp_path / "out" / "report.html").read_bytes()
    run = tmp_path / "out" / study(tmp_path)["runs"][1]["path"]
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"val/bpb": ', '"val/bpb": 0'))
    started.clear()
    answer = compare("attn=mha,mqa", "seeds=1")
    assert answer.code == 2 and started == []
    assert answer.err.count("\n") == 1 and str(run / "metrics.jsonl") in answer.err and "was changed" in answer.err
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    shutil.rmtree(run)
    assert compare("attn=mha,mqa", "seeds=1").code == 0
    assert started == ["mqa, seed 1337"] and (run / "metrics.jsonl").read_text() != ""


@pytest.mark.slow
def test_a_failed_run_is_left_out_and_retried(
    compare: Compare, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = run_pool.train

    def fails_once(job: run_pool.PooledRun, *others: object) -> int:
        code = working(job, *others)  # type: ignore[arg-type]
        if job.label != "mqa, seed 1338":
            return code
        shutil.rmtree(job.path)
        job.error_file.write_text("error: no space left while writing (metrics.jsonl): free some\n")
        return 2

    monkeypatch.setattr(run_pool, "train", fails_once)
    answer = compare("attn=mha,mqa")
    assert answer.code == 1, answer
    found = study(tmp_path)
    [failed] = [run for run in found["runs"] if run["status"] == "failed"]
    assert (failed["arm"], failed["seed"], failed["value"]) == ("mqa", 1338, None)
    assert any("mqa, seed 1338, failed and is left out: no space left" in note for note in found["notes"])
    assert found["differences"][0]["seeds"] == [1337]
    monkeypatch.setattr(run_pool, "train", working)
    started.clear()
    assert compare("attn=mha,mqa").code == 0
    assert started == ["mqa, seed 1338"]


BAD = [
    (("attn=mha,mqa", "seeds=0"), "error: value out of range (seeds=0): at least 1"),
    (("attn=mha,mqa", "budget.amount=63"), "error: the budget is too small (budget.amount=63): one step of mha"),
    (
        ("attn=mha,mqa", "match=kv_bytes"),
        "error: the arm cannot be matched (match=kv_bytes): arm mqa against mha: the closest match",
    ),
    (("attn=mha,mqa", "sedes=3"), "error: unknown key (sedes=3): did you mean seeds?"),
]
MORE_BAD = [
    (("attn=mha,mla9",), "error: no such option (attn=mla9)"),
    (("attn=mha,mqa", "seeds=many"), "error: value not allowed (seeds=many)"),
    (("attn=mha,mqa", "budget.amount=-1"), "error: value not allowed (budget.amount=-1)"),
    (("attn=mha,mqa", "match=parameters"), "error: value not allowed (match=parameters)"),
    (("attn=mha,mqa", "reference=gqa"), "error: no such arm (reference=gqa): one of mha, mqa"),
    (("attn=mha,mqa", "trainer.eval_every=0"), "error: a comparison needs evaluations (trainer.eval_every=0)"),
    (("attn=mha,mqa", "trainer.max_steps=5"), "error: the length of the runs is set twice (trainer.max_steps)"),
    (("attn=mha,mqa", "tune=optimizer.lr=1e-3"), "error: nothing to choose from (tune=optimizer.lr=1e-3)"),
    (("attn=mha,mqa", "-m"), "error: flag not supported (-m)"),
    (("attn=mha", "seed=1,2"), "error: the key cannot differ between arms (seed=1,2)"),
    (("attn=mha,mqa", "optimizer.lr=abc"), "error: wrong type (optimizer.lr=abc)"),
    (("attn=mha,mqa", "probes=[recal]"), "error: no such option (tasks=recal): did you mean recall?"),
]


@pytest.mark.parametrize(
    ("settings", "message"), [*BAD, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_BAD)]
)
@pytest.mark.every(2)
def test_bad_input_is_one_line_and_creates_nothing(
    settings: tuple[str, ...], message: str, compare: Compare, tmp_path: Path, started: list[str]
) -> None:
    answer = compare(*settings)
    assert answer.code == 2, answer
    assert answer.err.startswith(message) and len(answer.err.splitlines()) == 1, answer.err
    assert not (tmp_path / "out").exists() and started == []


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_continues(tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "words.txt", n_words=400)
    long = [one for one in SHORT if not one.startswith(("budget", "evaluations"))]
    command = [sys.executable, "-m", "tinyllm.compare", "attn=mha,mqa", "dataset=text", f"dataset.path={text}", *long]
    command += ["budget.amount=100000", "evaluations=1", "seeds=1", f"out={tmp_path / 'out'}"]
    with (tmp_path / "shown").open("w") as shown:
        process = subprocess.Popen(command, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(lambda: list(tmp_path.glob("out/runs/mqa*/metrics.jsonl")), seconds=300)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 128 + signal.SIGINT
    assert "[1/2] mha" in (tmp_path / "shown").read_text() and "[2/2]" not in (tmp_path / "shown").read_text()
    [stopped] = tmp_path.glob("out/runs/mqa*/run.json")
    assert json.loads(stopped.read_text())["status"] == "interrupted"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done
    assert "1 of 2 runs have finished already" in done.stdout and "[1/1] mqa" in done.stdout
    found = study(tmp_path)
    assert [run["status"] for run in found["runs"]] == ["finished"] * 2


@pytest.mark.slow
def test_a_comparison_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "words.txt", n_words=400)
    long = [one for one in SHORT if not one.startswith(("budget", "evaluations"))]
    command = [sys.executable, "-m", "tinyllm.compare", "attn=mha,mqa", "dataset=text", f"dataset.path={text}", *long]
    command += ["budget.amount=10000000", "evaluations=1", "seeds=1", f"out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("out/runs/mha*/metrics.jsonl")), seconds=300)
    process.kill()
    process.wait()
    [left] = tmp_path.glob("out/runs/mha*/run.json")
    wait_for(lambda: json.loads(left.read_text())["status"] == "interrupted", seconds=60)


@pytest.mark.parametrize(
    "entry", ["report.md", *(pytest.param(one, marks=pytest.mark.slow) for one in ("figures", "runs.csv", "notes.txt"))]
)
def test_a_directory_of_other_things_is_refused(
    entry: str, compare: Compare, tmp_path: Path, started: list[str]
) -> None:
    paper = tmp_path / "out"
    (paper / "figures").mkdir(parents=True)
    (paper / "figures" / "mine.svg").write_text("mine", encoding="utf-8")
    if entry != "figures":
        (paper / entry).write_text("mine", encoding="utf-8")
    answer = compare("attn=mha,mqa")
    assert answer.code == 2 and answer.err.startswith(f"error: the directory is not empty (out={paper})"), answer
    assert started == [] and (paper / "figures" / "mine.svg").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a disk")
def test_a_full_disk_stops_the_study_and_the_same_command_continues(
    compare: Compare, tmp_path: Path, started: list[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(out)], check=True)
    try:
        answer = compare("attn=mha,mqa")
        assert answer.code in (1, 2), answer
        assert len(answer.err.splitlines()) == 1 - (answer.code == 1) and "no space left" in answer.err + answer.out
        whole = [path.parent for path in out.glob("runs/*/run.json") if '"finished"' in path.read_text()]
        assert 0 < len(whole) < len(started)
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        started.clear()
        assert compare("attn=mha,mqa").code == 0
        assert len(started) == 4 - len(whole)
        assert [run["status"] for run in study(tmp_path)["runs"]] == ["finished"] * 4
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_pilot_decides_the_number_of_seeds(compare: Compare, tmp_path: Path, started: list[str]) -> None:
    answer = compare("attn=mha,mqa,gqa", "seeds=auto", "effect=1.0")
    assert answer.code == 0, answer
    found = study(tmp_path)
    assert found["seeds"] == [1337 + i for i in range(FEWEST)] and str(PILOT) in found["seeds_note"]
    assert len(found["runs"]) == 3 * FEWEST and len(started) == 2 * PILOT + 3 * FEWEST
    pilots = {label.rpartition(" ")[2] for label in started[: 2 * PILOT]}
    assert pilots.isdisjoint(map(str, found["seeds"])) and not any("gqa" in label for label in started[: 2 * PILOT])
    started.clear()
    assert compare("attn=mha,mqa,gqa", "seeds=auto", "effect=1.0").code == 0
    assert started == [] and study(tmp_path) == found


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("how", ["tune=optimizer.lr=1e-5,1e-2", "tune=optimizer.lr"])
def test_every_arm_gets_the_same_number_of_trials(
    how: str, compare: Compare, tmp_path: Path, started: list[str]
) -> None:
    answer = compare("optimizer=adamw,lion", how, "tune_trials=2", "seeds=1")
    assert answer.code == 0, answer
    found = study(tmp_path)
    for arm in found["arms"]:
        values = [one["value"] for one in arm["trials"]]
        best = min(arm["trials"], key=lambda one: one["value"])
        assert len(values) == 2 and arm["tuned"] == {"optimizer.lr": best["optimizer.lr"]}
        [run] = [one for one in found["runs"] if one["arm"] == arm["name"]]
        assert metrics(tmp_path / "out" / run["path"])[-1]["step"] == STEPS
        assert f"optimizer.lr={best['optimizer.lr']}" in run["command"]
    assert any("tuned with 2 trials for every arm" in note for note in found["notes"])
    started.clear()
    assert compare("optimizer=adamw,lion", how, "tune_trials=2", "seeds=1").code == 0
    assert started == [] and study(tmp_path) == found


@pytest.mark.slow
@pytest.mark.exhaustive
def test_minutes_become_steps_at_each_arms_own_speed(compare: Compare, tmp_path: Path, started: list[str]) -> None:
    settings = ("attn=mha,mqa", "budget=minutes", "budget.amount=0.02", "seeds=1", "trainer.eval_tokens=100")
    assert compare(*settings).code == 0
    found = study(tmp_path)
    speeds = json.loads((tmp_path / "out" / "measured.json").read_text())["tokens_per_s"]
    for arm in found["arms"]:
        [speed] = [value for name, value in speeds.items() if name.startswith(f"{arm['name']}_")]
        rounds = [speed_of(path) for path in (tmp_path / "out" / "timing").glob(f"{arm['name']}_*_[123]")]
        assert len(rounds) == 3 and speed == sorted(rounds)[1]
        assert arm["max_steps"] == int(0.02 * 60 * speed / 64)
    assert started[:6] == ["mha", "mqa"] * 3, "in turn"
    started.clear()
    assert compare(*settings).code == 0
    assert started == [] and study(tmp_path) == found


def test_a_model_that_generates_nothing_has_speed_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        max_seq_len = 8

    monkeypatch.setattr("tinyllm.studies.compare.measurements.load", lambda run, allow: (Silent(), None))
    monkeypatch.setattr("tinyllm.studies.compare.measurements.stream_text", lambda *given, **named: iter(()))
    assert decode_speed(tmp_path, allow=frozenset()) == 0
