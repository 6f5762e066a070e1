"""``python -m tinyllm.replay <run dir>``: repeat a run and compare it with the original bit for bit."""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import USER_ERROR
from tinyllm.programs.recorded_run import recorded_run
from tinyllm.programs.training_process import TrainingFailed, TrainingProcess
from tinyllm.runs.checkpoint import Checkpoint, steps_in, verify
from tinyllm.runs.directory import make_output_dir
from tinyllm.runs.facts import compared_settings, differing, first_config, origins, read_run_json
from tinyllm.runs.layout import CHECKPOINTS, METRICS
from tinyllm.runs.state_diff import StateDiff, comparable_records, compare, compare_records, contents, table
from tinyllm.utils.text import escape_control

DIGEST_DIGITS = 12
"""Digits of a sha256 that are printed."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The comparison of a run with its repetition."""

    run: str
    again: str
    agree: bool
    sections: list[StateDiff]
    """The records first; then the checkpoint, if both runs have one of that step."""
    made_by: dict[str, tuple[Any, Any]]
    """Differences in code, versions, data and machine, as (then, now)."""
    config: dict[str, tuple[Any, Any]]
    """Configuration values that differ, as (then, now)."""


def replay(flags: argparse.Namespace) -> int:
    """Train the run again, compare, print the result; returns the exit code."""
    run = recorded_run(flags.run, steps=flags.steps, config_dir=flags.config_dir)
    if not flags.json:
        print(escape_control(f"replaying {run.steps} steps of {run.path}"), flush=True)
    out = make_output_dir(flags.out)
    keep = flags.out is not None
    try:
        train_again(run.command(out / "run"), out, threads=run.threads)
        result = compared(run.path, out / "run", steps=run.steps, checkpoint=run.checkpoint)
        keep = keep or not result.agree
        print(json.dumps(asdict(result)) if flags.json else escape_control("\n".join(report(result))))
        return 0 if result.agree else 1
    except TrainingFailed as failed:
        print(escape_control(f"error: {failed}"), file=sys.stderr)
        return USER_ERROR
    finally:
        if not keep:
            shutil.rmtree(out)


def train_again(arguments: list[str], out: Path, *, threads: int) -> None:
    """Train into ``out/run`` with the run's number of threads, on which the order of sums depends.

    Raises:
        TrainingFailed: the training exited with an error.
    """
    environ = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with TrainingProcess(arguments, log=out / "run.log", environ=environ) as training:
        training.check(training.wait())


def compared(run: Path, again: Path, *, steps: int, checkpoint: Checkpoint | None) -> Replay:
    """Compare the first ``steps`` steps of two run directories.

    Args:
        checkpoint: the checkpoint of ``run`` at that step.
    """
    records = [
        [record for record in comparable_records(path / METRICS) if record["step"] <= steps] for path in (run, again)
    ]
    sections = [compare_records(*records)]
    new = steps_in(again / CHECKPOINTS).get(steps)
    if checkpoint is not None and new is not None:
        sections += compare(contents(checkpoint), contents(verify(new)))
    return Replay(
        run=str(run),
        again=str(again),
        agree=all(section.equal for section in sections),
        sections=sections,
        made_by=differing(*(origins(read_run_json(path)) for path in (run, again))),
        config=differing(*(compared_settings(first_config(path)) for path in (run, again))),
    )


def report(result: Replay) -> list[str]:
    """The result as lines of text."""
    lines = table(result.sections)
    if len(result.sections) == 1:
        lines.append("the run has no checkpoint of this step: weights are not compared")
    changed = result.made_by | result.config
    lines += [f"{name} differs: {_shown(then)} then, {_shown(now)} now" for name, (then, now) in changed.items()]
    if result.agree:
        return [*lines, f"verdict: bitwise the same{', despite these differences' if changed else ''}"]
    if not changed:
        lines.append("code, data, versions, threads and machine are the same: this training is not deterministic")
    first = result.sections[0].differences[:1]
    where = f", first in {first[0]}" if first else ", in the checkpoint alone"
    return [*lines, f"both runs: {result.run} and {result.again}", f"verdict: not the same{where}"]


def _shown(value: Any) -> str:
    text = str(value)
    return text[:DIGEST_DIGITS] if len(text) == 64 else text
