"""``python -m tinyllm.pipeline`` on models of 25,000 parameters: whole, twice, killed and continued."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.elsewhere import wait_for
from tests.support.pico_recipe import recipe, write_recipe
from tests.support.training_runs import digest, write_corpus
from tinyllm.programs.training_process import descendants
from tinyllm.runs.checkpoint import steps_in
from tinyllm.runs.layout import CHECKPOINTS
from tinyllm.utils.platforms import kill_process

SHORT = ("pairs", "preference")
"""Stages that are left out where a test is about the others."""
PATIENCE = 1800
"""Seconds after which a pipeline hangs; it takes one minute on an idle machine."""


class Started:
    """A pipeline in a process of its own."""

    def __init__(self, file: Path, out: Path, *settings: str) -> None:
        command = [sys.executable, "-m", "tinyllm.pipeline", "recipe=file", f"recipe.path={file}", f"out={out}"]
        self.process = subprocess.Popen(
            [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def kill(self) -> None:
        """SIGKILL to it and to everything that it has started."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            kill_process(pid)
        self.process.communicate()

    def kill_when(self, is_time: Callable[[], bool], *, delay: float) -> None:
        wait_for(lambda: is_time() or self.process.poll() is not None, seconds=PATIENCE)
        assert self.process.poll() is None, self.process.communicate()
        time.sleep(delay)
        self.kill()

    def end(self, *, code: int = 0) -> str:
        """Wait for the end; what it printed."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == code, out + err
        return out + err


def made(out: Path) -> dict[str, str]:
    """What decides about the result: the state of every run, the pairs, and all that was measured."""
    found = {path.name: digest(path) for path in (out / "stages").iterdir() if (path / CHECKPOINTS).is_dir()}
    files = [*(out / "stages").glob("*/pairs.jsonl"), *(out / "samples").iterdir()]
    found |= {str(file.relative_to(out)): file.read_text(encoding="utf-8") for file in files}
    result = json.loads((out / "pipeline.json").read_text(encoding="utf-8"))
    for stage in result["stages"]:
        found[f"{stage['name']}, measured"] = json.dumps([stage["values"], stage["curve"], stage["samples"]])
    return found


def stamps(out: Path) -> dict[Path, int]:
    """When each file of the stages and measures was written."""
    return {file: file.stat().st_mtime_ns for folder in ("stages", "measures") for file in (out / folder).rglob("*")}


def stage_dir(out: Path, name: str) -> Path | None:
    """The directory of a stage, if there is one."""
    return next((path for path in (out / "stages").glob(f"{name}_s*") if path.is_dir()), None)


def has_step(out: Path, name: str, step: int) -> bool:
    """Whether a stage has a checkpoint of that step."""
    path = stage_dir(out, name)
    return path is not None and step in steps_in(path / CHECKPOINTS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def short(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of three stages, and the directory of its pipeline, which ran undisturbed."""
    folder = tmp_path_factory.mktemp("short")
    content: dict[str, Any] = recipe(text)
    content["measures"] = content["measures"][1:]
    file = write_recipe(folder / "mine.yaml", content, without=SHORT)
    Started(file, folder / "out").end()
    return file, folder / "out"


@pytest.mark.slow
def test_the_same_command_does_nothing_the_second_time(short: tuple[Path, Path]) -> None:
    file, out = short
    result = json.loads((out / "pipeline.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in result["stages"]] == ["language", "tools", "reward"]
    assert [sorted(stage["values"]) for stage in result["stages"]] == [[], ["ended", "exact"], ["ended", "exact"]]
    assert result["stages"][2]["metric"] == "rl/reward" and len(result["stages"][2]["curve"]) == 3
    assert all(len(stage["samples"]) == 1 for stage in result["stages"])
    assert "tinyllm.chat" in result["talk"] and result["stages"][2]["path"] in result["talk"]
    reports = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "stages.csv")}
    before = stamps(out)
    shown = Started(file, out).end()
    assert stamps(out) == before and "finished in" not in shown
    assert {name: (out / name).read_bytes() for name in reports} == reports
    again = Started(file, out, "dry_run=true").end()
    assert again.count("finished") == 3 and "0 of 3 stages to run" in again
    changed = Started(file, out, "stages.reward.optimizer.lr=1e-3", "dry_run=true").end()
    assert changed.count("finished") == 2 and "1 of 3 stages to run" in changed


@pytest.mark.slow
def test_a_pipeline_killed_in_a_rollout_ends_with_the_same_bits(short: tuple[Path, Path], tmp_path: Path) -> None:
    file, whole = short
    out = tmp_path / "out"
    Started(file, out).kill_when(lambda: has_step(out, "reward", 1), delay=random.Random(1).uniform(0, 0.1))
    shown = Started(file, out).end()
    assert "language:" not in shown and "reward:" in shown  # what had finished did not run again
    assert made(out) == made(whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(3))
def test_a_pipeline_killed_in_every_stage_ends_with_the_same_bits(text: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    file = write_recipe(tmp_path / "mine.yaml", recipe(text, learns=True))
    Started(file, tmp_path / "whole").end()
    out = tmp_path / "out"
    moments: list[Callable[[], bool]] = [
        *(lambda name=name: has_step(out, name, 1) for name in ("language", "tools")),  # type: ignore[misc]
        lambda: stage_dir(out, "pairs") is not None,
        *(lambda name=name: has_step(out, name, 1) for name in ("preference", "reward")),  # type: ignore[misc]
        lambda: any(out.glob("measures/reward_*")),
    ]
    for moment in moments:
        started = Started(file, out)
        wait_for(lambda: moment() or started.process.poll() is not None, seconds=PATIENCE)  # noqa: B023
        time.sleep(dice.uniform(0, 1.0))
        started.kill()
    Started(file, out).end()
    assert made(out) == made(tmp_path / "whole")


@pytest.mark.slow
def test_a_failed_stage_names_those_that_were_not_started(text: Path, tmp_path: Path) -> None:
    content = recipe(text, steps=1)
    content["stages"][0]["settings"].append("model.d_ff=1000000000")
    file = write_recipe(tmp_path / "mine.yaml", content, without=SHORT)
    shown = Started(file, tmp_path / "out").end(code=1)
    assert "error: stage language failed: " in shown and "; not started: tools, reward; " in shown
    assert "to try again: python -m tinyllm.pipeline recipe=file" in shown
