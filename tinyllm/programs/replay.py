"""``python -m tinyllm.replay <run dir>``: train again what a run directory holds; are the numbers the same?"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.runs.checkpoint import Checkpoint
    from tinyllm.runs.state_diff import Comparison

EXAMPLES = """\
Exit code 0: every metric and weight has the same bits. 1: something differs, and both runs are kept. 2: it cannot be
told. What the clock decides (speed, memory, seconds) is left out.

examples:
  python -m tinyllm.replay outputs/2026-01-31/12-00-00_nano
  python -m tinyllm.replay outputs/2026-01-31/12-00-00_nano --steps 100 --out again
"""
SHOWN = 5
"""Differences that are printed of each section."""
DIGITS = 12
"""Of a fingerprint, on the screen."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it."""

    run: str
    again: str
    agree: bool
    sections: "list[Comparison]"
    """Of the records, and of the checkpoint where both runs have one of the same step."""
    made_by: dict[str, tuple[Any, Any]]
    """Code, versions, data, machine: what was another one then and now."""
    config: dict[str, tuple[Any, Any]]
    """Values of the configuration that were others."""


def main() -> None:
    """Entry point of ``tinyllm-replay``."""
    from tinyllm.config.cli.flags import Flags, answer

    def work() -> int:
        flags = Flags("replay", description="Train again what a run directory holds.", epilog=EXAMPLES)
        flags.add_argument("run", type=Path, help="the run directory")
        flags.add_argument("--out", type=Path, help="directory for the new run; default: a temporary one")
        flags.add_argument("--steps", type=int, help="do and compare the first steps only")
        flags.add_argument("--config-dir", help="where its own option files lie, as it was trained with")
        flags.add_argument("--json", action="store_true", help="print one JSON object")
        return _replay(flags.parse_args())

    answer(work)


def _replay(asked: argparse.Namespace) -> int:
    import json
    import shutil
    import sys

    from tinyllm.config.cli.flags import USER_ERROR
    from tinyllm.programs.recorded_run import recorded
    from tinyllm.programs.verify_resume import TrainingFailed, place
    from tinyllm.utils.text import plain

    was = recorded(asked.run, steps=asked.steps, config_dir=asked.config_dir)
    if not asked.json:
        print(plain(f"replaying {was.steps} steps of {was.path}"), flush=True)
    out = place(None if asked.out is None else str(asked.out))
    keep = asked.out is not None
    try:
        train_again(was.command(out / "run"), out, threads=was.threads)
        found = compared(was.path, out / "run", steps=was.steps, checkpoint=was.checkpoint)
        keep = keep or not found.agree
        if asked.json:
            print(json.dumps(asdict(found)))
        else:
            print(plain("\n".join(told(found))))
        return 0 if found.agree else 1
    except TrainingFailed as failed:
        print(plain(str(failed)), file=sys.stderr)
        return USER_ERROR
    finally:
        if not keep:
            shutil.rmtree(out)


def train_again(settings: list[str], out: Path, *, threads: int) -> None:
    """Train into ``out/run``, with the number of threads that the run had.

    Raises:
        TrainingFailed: it ended otherwise than well.
    """
    from tinyllm.programs.training_process import TrainingProcess
    from tinyllm.programs.verify_resume import ended

    environ = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    watched = TrainingProcess(settings, run_dir=out / "run", log=out / "run.log", environ=environ)
    ended(watched, watched.follow())


def compared(run: Path, again: Path, *, steps: int, checkpoint: "Checkpoint | None") -> Replay:
    """Everything of the first ``steps`` steps that both directories hold.

    Args:
        checkpoint: the run's, of that step.
    """
    from tinyllm.runs.checkpoint import steps_in, verify
    from tinyllm.runs.facts import differing, of_run, origins, read_config
    from tinyllm.runs.layout import CHECKPOINTS, METRICS
    from tinyllm.runs.seal import read_run_json
    from tinyllm.runs.state_diff import compare, compare_records, contents, records

    logs = [[one for one in records(each / METRICS) if one["step"] <= steps] for each in (run, again)]
    sections = [compare_records(*logs)]
    new = steps_in(again / CHECKPOINTS).get(steps)
    if checkpoint is not None and new is not None:
        sections += compare(contents(checkpoint), contents(verify(new)))
    return Replay(
        run=str(run),
        again=str(again),
        agree=all(section.equal for section in sections),
        sections=sections,
        made_by=differing(*(origins(read_run_json(each)) for each in (run, again))),
        config=differing(*(of_run(read_config(each)) for each in (run, again))),
    )


def told(found: Replay) -> list[str]:
    """The lines for a person."""
    from tinyllm.programs.verify_resume import show

    lines: list[str] = []
    show(found.sections, lines.append)
    if len(found.sections) == 1:
        lines.append("no checkpoint of this step is left: weights are not compared")
    for name, (then, now) in (found.made_by | found.config).items():
        lines.append(f"other {name}: {_text(then)} then, {_text(now)} now")
    if found.agree:
        others = ", although it was made otherwise" if found.made_by or found.config else ""
        return [*lines, f"verdict: bitwise the same{others}"]
    if not found.made_by and not found.config:
        lines.append("code, data, versions, threads and machine are the same: this training does not repeat itself")
    first = found.sections[0].differences[:1]
    where = f", first in {first[0]}" if first else ", in the checkpoint alone"
    return [*lines, f"both runs: {found.run} and {found.again}", f"verdict: not the same{where}"]


def _text(value: Any) -> str:
    text = str(value)
    return text[:DIGITS] if len(text) == 64 else text
