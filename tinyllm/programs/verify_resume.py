"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: is a run that was killed and resumed the same run?"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation
    from tinyllm.programs.training_process import Moment, TrainingProcess
    from tinyllm.runs.state_diff import Comparison

OWN = ("kills", "kill_seed", "out")
HORIZON = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
CHOSEN_HERE = ("log_every", "eval_every", "sample_every", "checkpoint_every")
"""Keys of the training loop that ``conf/verify_resume.yaml`` gives other defaults than ``conf/train.yaml``."""
NOT_HERE = {
    "run.dir": "out=<directory> holds both runs",
    "resume": "both runs start here; init_from starts from the weights of another",
    "trainer.stop_after_steps": "the kills interrupt the second run",
    "trainer.max_minutes": "both runs go to the same step",
}
ATTEMPTS = 5
"""Runs that are killed at most, until every kill has come before the end of one."""
SHOWN = 5
"""Differences that are printed of each section."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill that hit."""

    step: int
    """The last step in the metrics."""
    checkpoint: int
    """The step that the run goes on from; 0: from the start."""
    again: int
    """Recorded steps that are done again."""
    saving: bool
    """Whether a checkpoint was being written."""


class TrainingFailed(Exception):
    """A training ended with an error of its own.

    Args:
        code: its exit code.
        line: what it said.
    """

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def main() -> None:
    """Entry point of ``tinyllm-verify-resume``."""
    from tinyllm.config.cli.main import run

    run("verify_resume", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    import json
    import shutil
    import sys

    say: Callable[[str], None] = _silent if invocation.json else _say
    settings = training_settings(cfg, invocation)
    out = place(cfg.out)
    equal = False
    try:
        kills = train_twice(settings, out, kills=cfg.kills, seed=cfg.kill_seed, say=say)
        sections = compare_runs(out / "whole", out / "killed")
        equal = all(section.equal for section in sections)
        if invocation.json:
            facts = {"equal": equal, "kills": [asdict(kill) for kill in kills]}
            print(json.dumps(facts | {"sections": [asdict(section) for section in sections]}))
        show(sections, say)
        missed = cfg.kills - len(kills)
        say(verdict(equal, len(kills), missed))
        return 0 if equal and not missed else 1
    except TrainingFailed as failed:
        print(failed, file=sys.stderr)
        return failed.code
    finally:
        if cfg.out is not None or ((out / "whole").exists() and not equal):
            say(f"both runs: {out}")
        else:
            shutil.rmtree(out)


def training_settings(cfg: "DictConfig", invocation: "Invocation") -> list[str]:
    """The command line of the training: what was given here, and the short horizon unless one was.

    Raises:
        UserError: a setting that the two runs cannot share.
    """
    from tinyllm.config.overrides import key_of
    from tinyllm.config.quoting import unquoted
    from tinyllm.errors import UserError, setting

    for key, hint in NOT_HERE.items():
        if key in invocation.typed:
            raise UserError("not a setting of this program", file=key, hint=hint)
    if not cfg.checkpoint.enabled:
        hint = "the killed run goes on from its checkpoints; leave it out"
        raise UserError("nothing to resume from", key="checkpoint.enabled", value=False, hint=hint)
    if not (cfg.trainer.log_every or cfg.trainer.checkpoint_every):
        raise UserError("nothing tells how far a run is", key="trainer.log_every", value=0, hint="at least 1")
    given = [one for one in invocation.overrides if key_of(one) not in OWN]
    chosen = {f"trainer.{name}": cfg.trainer[name] for name in CHOSEN_HERE}
    if invocation.typed.isdisjoint(HORIZON):
        chosen |= {HORIZON[0]: cfg.trainer.max_steps} | dict.fromkeys(HORIZON[1:])
    flags = [] if invocation.config_dir is None else ["--config-dir", invocation.config_dir]
    mine = [setting(key, value) for key, value in chosen.items() if key not in invocation.typed]
    return [*flags, *unquoted(given), *mine]


def place(out: str | None) -> Path:
    """The directory for both runs, made now.

    Raises:
        UserError: it exists or cannot be made.
    """
    import tempfile

    from tinyllm.errors import UserError

    if out is None:
        return Path(tempfile.mkdtemp(prefix="tinyllm-verify-"))
    try:
        Path(out).mkdir(parents=True)
    except FileExistsError as error:
        raise UserError("the directory exists", key="out", value=out, hint="choose another") from error
    except OSError as error:
        raise UserError("the directory cannot be made", key="out", value=out, hint=str(error.strerror)) from error
    return Path(out)


def train_twice(settings: list[str], out: Path, *, kills: int, seed: int, say: "Callable[[str], None]") -> list[Kill]:
    """Train into ``out/whole`` without and into ``out/killed`` with interruptions; the kills that hit.

    Raises:
        TrainingFailed: a training ended otherwise than well.
    """
    import random
    import shutil

    from tinyllm.programs.training_process import TrainingProcess

    whole = TrainingProcess([*settings, f"run.dir={out / 'whole'}"], run_dir=out / "whole", log=out / "whole.log")
    ended(whole, whole.follow())
    say(f"uninterrupted: {max(whole.arrivals, default=0)} steps")
    draw = random.Random(seed)
    for again in range(ATTEMPTS):
        if again:
            say("the run ended before the last of them: from the start, with other moments")
            shutil.rmtree(out / "killed")
        hits = train_with_kills(settings, out, moments(whole.arrivals, kills, draw), say=say)
        if len(hits) == kills or len(whole.arrivals) < 2:
            break
    return hits


def train_with_kills(
    settings: list[str], out: Path, planned: "list[Moment]", *, say: "Callable[[str], None]"
) -> list[Kill]:
    """Train into ``out/killed``, killed at the planned moments; the kills that hit.

    Raises:
        TrainingFailed: a training ended with an error of its own.
    """
    from tinyllm.programs.training_process import TrainingProcess

    run = out / "killed"
    hits = []
    for number, moment in enumerate([*planned, None], 1):
        watched = TrainingProcess(
            [*settings, f"run.dir={run}", "resume=auto"], run_dir=run, log=out / f"killed-{number}.log"
        )
        code = watched.follow(moment)
        if code is None:
            hits.append(interrupted(run))
            say(f"kill {number} of {len(planned)}: {told(hits[-1])}")
        else:
            ended(watched, code)
    return hits


def ended(watched: "TrainingProcess", code: int | None) -> None:
    """Check that a training ended well.

    Raises:
        TrainingFailed: it did not.
    """
    if code:
        raise TrainingFailed(code if code > 0 else 1, watched.error)


def moments(arrivals: dict[int, float], kills: int, draw: "Random") -> "list[Moment]":
    """Random moments between the first step and the last but one, spread evenly over the time and in its order.

    The time that a checkpoint takes is part of it, so the more a run saves the more kills fall into saving. A run
    that is faster than ``arrivals`` is killed at its last step but one at the latest.
    """
    from tinyllm.programs.training_process import Moment

    steps = sorted(arrivals)
    if len(steps) < 2:
        return []
    first, last = arrivals[steps[0]], arrivals[steps[-2]]
    chosen = []
    for time in sorted(draw.uniform(first, last) for _ in range(kills)):
        step = max(one for one in steps if arrivals[one] <= time)
        chosen.append(Moment(step=step, delay=time - arrivals[step], latest=steps[-2]))
    return chosen


def interrupted(run: Path) -> Kill:
    """What a kill left."""
    from tinyllm.runs.checkpoint import steps_in
    from tinyllm.runs.directory import CHECKPOINTS, METRICS
    from tinyllm.runs.metrics_log import read_metrics

    records = read_metrics(run / METRICS)
    step = int(records[-1]["step"]) if records else 0
    checkpoint = max(steps_in(run / CHECKPOINTS), default=0)
    saving = any((run / CHECKPOINTS).glob(".tmp-*"))
    return Kill(step=step, checkpoint=checkpoint, again=max(0, step - checkpoint), saving=saving)


def told(kill: Kill) -> str:
    """One kill as a sentence."""
    where = f"after step {kill.step}{', while saving' if kill.saving else ''}"
    return f"{where}; goes on from step {kill.checkpoint}, {kill.again} again"


def compare_runs(one: Path, other: Path) -> "list[Comparison]":
    """Every tensor and counter of the newest checkpoints, every record, and which checkpoints there are."""
    from tinyllm.runs.checkpoint import find, read_hint, steps_in
    from tinyllm.runs.directory import CHECKPOINTS, METRICS
    from tinyllm.runs.state_diff import Comparison, compare, compare_records, contents, records

    sections = compare(contents(find(one)), contents(find(other)))
    sections.append(compare_records(records(one / METRICS), records(other / METRICS)))
    names = []
    for run in (one, other):
        hints = [read_hint(run / CHECKPOINTS, hint) for hint in ("last", "best")]
        names.append([*steps_in(run / CHECKPOINTS), *(hint.name if hint else None for hint in hints)])
    differences = [] if names[0] == names[1] else [f"steps, last and best: {names[0]} and {names[1]}"]
    return [*sections, Comparison(name="checkpoints", values=len(names[0]) - 2, differences=differences)]


def show(sections: "list[Comparison]", say: "Callable[[str], None]") -> None:
    """The table of what was compared."""
    width = max(len(section.name) for section in sections)
    for section in sections:
        count = f"{section.values} compared"
        different = f"{len(section.differences)} different"
        say(f"{section.name:<{width}}  {count:>14}  {'bitwise equal' if section.equal else different}")
        for sentence in section.differences[:SHOWN]:
            say(f"{'':<{width}}  {sentence}")


def verdict(equal: bool, hits: int, missed: int) -> str:
    """The last line."""
    kills = f"{hits} kill{'' if hits == 1 else 's'}"
    if missed:
        return f"verdict: open: {missed} of the kills missed, the run had ended; more steps give them time"
    if equal:
        return f"verdict: bitwise equal after {kills}"
    advice = "kills=0 tells whether training repeats itself at all" if hits else "training does not repeat itself"
    return f"verdict: not equal after {kills}; {advice}"


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    """For output that is JSON."""
