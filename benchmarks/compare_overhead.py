"""Overhead of ``compare``: what a study costs beside the training of its runs, and where that time goes.

    python benchmarks/compare_overhead.py [--arms attn=mha,gqa] [--seeds 2] [--no-reference] [--json x.json] [setting …]

Times one comparison. ``training`` is the sum of its runs' loops, from the first step to the last evaluation and
checkpoint, by the times in their ``events.jsonl``. The rest of the wall time is listed by part: those of the program by
timers around its functions, start and end of the runs by their events. Then the same runs are trained by one process,
one after the other, with the commands of the report: the reference, which also starts once and builds every run.

The overhead is the rest of the study minus the rest of the reference, relative to the reference. The training times of
the two are not compared, because they differ by more than the overhead. Needs an otherwise idle machine.
"""

import argparse
import json
import os
import pkgutil
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

SHORT = ("trainer.batch_size=32", "budget.amount=1e6")
INSIDE, STUDY, REFERENCE = "--inside", "study", "reference"
PROGRAM = "tinyllm.studies.compare.program"
TIMED = {
    f"{PROGRAM}.prepare": "composing and matching the arms",
    "tinyllm.studies.compare.pipeline.StudyRuns.train": "runs",
    "tinyllm.studies.compare.pipeline.StudyRuns.decode_speeds": "generation speed",
    f"{PROGRAM}.conduct": "study",
    f"{PROGRAM}.write_report": "report",
    f"{PROGRAM}.show": "table in the terminal",
}
"""What the timed functions are called in the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.compare")
    parser.add_argument("--arms", default="attn=mha,gqa")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-reference", action="store_true", help="do not train the runs again")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "study"
        given = [options.arms, f"seeds={options.seeds}", *SHORT, *options.settings, f"out={out}"]
        study = measure_study(given, out)
        print(table("compare", study), flush=True)
        figures: dict[str, Any] = {"study": study}
        if not options.no_reference:
            reference = measure_reference(commands_of(out), Path(place))
            print(table("one process", reference), flush=True)
            overhead = study["rest_s"] - reference["rest_s"]
            share = overhead / (study["training_s"] + reference["rest_s"])
            print(f"overhead of compare: {overhead:.2f} s, {share:+.2%} of one process that trains the same runs")
            figures |= {"reference": reference, "overhead_s": overhead, "overhead": share}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def commands_of(study: Path) -> list[list[str]]:
    """The arguments of each run of a study, as its report gives them."""
    runs = json.loads((study / "study.json").read_text(encoding="utf-8"))["runs"]
    return [[word for word in shlex.split(run["command"])[3:] if not word.startswith("run.dir=")] for run in runs]


def measure_study(settings: Sequence[str], out: Path) -> dict[str, Any]:
    """Seconds of a comparison: ``wall_s``, ``training_s``, ``rest_s`` and, as ``parts``, what the rest consists of."""
    marks = out.with_suffix(".marks")
    began, ended = timed_child(STUDY, str(marks), *settings)
    spans = {name: (begin, end) for name, begin, end in json.loads(marks.read_text(encoding="utf-8"))}
    events = sorted(loop_times(path) for path in (out / "runs").glob("*/events.jsonl"))
    first, last = spans["runs"]
    # A run starts when the one before it has ended; its end is noticed after it has drawn its curves.
    parts = {"start, imports, configuration": spans[TIMED[f"{PROGRAM}.prepare"]][0] - began}
    for name in TIMED.values():
        if name not in ("runs", "study"):
            parts[name] = spans[name][1] - spans[name][0]
    parts["start of the first run"] = events[0][0] - first
    parts["between two runs"] = sum(after[0] - before[1] for before, after in pairwise(events))
    parts["end of the last run"] = last - events[-1][1]
    training = sum(end - begin for begin, end in events)
    rest = ended - began - training
    parts["other, exit"] = rest - sum(parts.values())
    return {"wall_s": ended - began, "training_s": training, "rest_s": rest, "runs": len(events), "parts": parts}


def measure_reference(commands: Sequence[Sequence[str]], place: Path) -> dict[str, Any]:
    """The same figures of one process that trains the runs."""
    runs = [[*words, f"run.dir={place}/run-{number}"] for number, words in enumerate(commands)]
    began, ended = timed_child(REFERENCE, json.dumps(runs))
    events = [loop_times(place / f"run-{number}" / "events.jsonl") for number in range(len(runs))]
    training = sum(end - begin for begin, end in events)
    parts = {
        "start of the first run": events[0][0] - began,
        "between two runs": sum(after[0] - before[1] for before, after in pairwise(events)),
        "end of the last run": ended - events[-1][1],
    }
    rest = ended - began - training
    return {"wall_s": ended - began, "training_s": training, "rest_s": rest, "runs": len(events), "parts": parts}


def loop_times(events: Path) -> tuple[float, float]:
    """When the training loop of a run began, and when its last evaluation or checkpoint ended."""
    times = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        times[event["event"]] = event["time"]
    return times["start"], max(times["evaluation"], times["checkpoint"])


def table(name: str, figures: dict[str, Any]) -> str:
    """The figures of a study or of the reference, a line per part."""
    wall, training, rest = figures["wall_s"], figures["training_s"], figures["rest_s"]
    lines = [f"{name}: {figures['runs']} runs, {wall:.2f} s = {training:.2f} s training + {rest:.2f} s"]
    lines += [f"  {seconds:6.2f} s  {part}" for part, seconds in figures["parts"].items()]
    return "\n".join(lines)


def timed_child(*arguments: str) -> tuple[float, float]:
    """Run a part of this script in a process of its own; returns when it was started and when it had ended."""
    began = time.time()  # the clock of the events
    subprocess.run([sys.executable, __file__, INSIDE, *arguments], check=True, stdout=subprocess.DEVNULL)
    return began, time.time()


def run_study(marks: Path, settings: Sequence[str]) -> None:
    """Compare, with timers around some functions; writes their names, begins and ends to ``marks``."""
    import tinyllm.compare
    from tinyllm.config.cli import main as command_line

    spans: list[tuple[str, float, float]] = []
    work_named = command_line.work_named

    def work_with_timers(target: str) -> Any:
        work = work_named(target)
        if target == f"{PROGRAM}:compare":  # its modules are imported now, and were not before
            for path, name in TIMED.items():
                owner, _, function = path.rpartition(".")
                room = pkgutil.resolve_name(owner)
                setattr(room, function, timed(name, getattr(room, function), spans))
        return work

    with mock.patch.object(command_line, "work_named", work_with_timers):
        run_program(tinyllm.compare.main, ["compare", *settings])
    marks.write_text(json.dumps(spans), encoding="utf-8")


def timed(name: str, function: Callable[..., Any], spans: list[tuple[str, float, float]]) -> Callable[..., Any]:
    """The function, which adds the time of every call to ``spans``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        result = function(*args, **kwargs)
        spans.append((name, began, time.time()))
        return result

    return call


def run_program(program: Callable[[], None], arguments: list[str]) -> None:
    """Run a program in this process.

    Raises:
        SystemExit: it failed.
    """
    with mock.patch.object(sys, "argv", arguments):
        try:
            program()
        except SystemExit as end:
            if end.code:
                raise


def inside(kind: str, first: str, *settings: str) -> None:
    """What the child processes do: a comparison with timers, or one run after the other."""
    if kind == STUDY:
        run_study(Path(first), settings)
        return
    import tinyllm.train

    for arguments in json.loads(first):
        run_program(tinyllm.train.main, ["train", *arguments])


if __name__ == "__main__":
    inside(*sys.argv[2:]) if sys.argv[1:2] == [INSIDE] else main()
