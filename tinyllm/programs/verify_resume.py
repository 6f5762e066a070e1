"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: check that resuming after a kill changes no bit."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError, setting
from tinyllm.programs.training_process import KillTime, TrainingFailed, TrainingProcess
from tinyllm.runs.checkpoint import find, read_hint, steps_in
from tinyllm.runs.directory import make_output_dir
from tinyllm.runs.layout import CHECKPOINTS, METRICS
from tinyllm.runs.metrics_log import last_record
from tinyllm.runs.state_diff import StateDiff, comparable_records, compare, compare_records, contents, table
from tinyllm.utils.files import TEMPORARY
from tinyllm.utils.text import say, silent

OWN = ("kills", "kill_seed", "out")
"""Keys of this program, which training does not know."""
HORIZON = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
INTERVALS = ("log_every", "eval_every", "sample_every", "checkpoint_every")
"""Keys of the trainer whose defaults in ``conf/verify_resume.yaml`` differ from those of training."""
REFUSED = {
    "run.dir": "out=<directory> holds both runs",
    "resume": "both runs start at step 0; init_from starts from the weights of an earlier run",
    "trainer.stop_after_steps": "the kills interrupt the second run",
    "trainer.max_minutes": "both runs go to the same step",
}
"""Settings of training that make no sense here, and why."""
ATTEMPTS = 5
"""How often the killed run is started over, if it ends before its last kill."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What a kill left behind."""

    step: int
    """The last step in the metrics."""
    checkpoint: int
    """The step of the newest checkpoint, where the run resumes; 0: it starts over."""
    again: int
    """Recorded steps that are trained again."""
    saving: bool
    """Whether a checkpoint was being written."""


def verify_resume(cfg: DictConfig, invocation: Invocation) -> int:
    """Train once without and once with kills, compare the two runs, and print the verdict; returns the exit code."""
    report = silent if invocation.json else say
    settings = training_settings(cfg, invocation)
    out = make_output_dir(cfg.out)
    equal = False
    try:
        kills = train_twice(settings, out, kills=cfg.kills, seed=cfg.kill_seed, report=report)
        sections = compare_runs(out / "whole", out / "killed")
        equal = all(section.equal for section in sections)
        if invocation.json:
            facts = {"equal": equal, "kills": [asdict(kill) for kill in kills]}
            print(json.dumps(facts | {"sections": [asdict(section) for section in sections]}))
        missed = cfg.kills - len(kills)
        for line in [*table(sections), verdict(equal, len(kills), missed)]:
            report(line)
        return 0 if equal and not missed else 1
    except TrainingFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.code
    finally:
        if cfg.out is not None or ((out / "whole").exists() and not equal):
            report(f"both runs: {out}")
        else:
            shutil.rmtree(out)


def training_settings(cfg: DictConfig, invocation: Invocation) -> list[str]:
    """The arguments of the training runs: the settings given here, and the short horizon unless one is given.

    Raises:
        UserError: a setting that the two runs cannot share.
    """
    for key, hint in REFUSED.items():
        if key in invocation.typed:
            raise UserError("not a setting of this program", file=key, hint=hint)
    if not cfg.checkpoint.enabled:
        hint = "the killed run resumes from its checkpoints; leave it out"
        raise UserError("nothing to resume from", key="checkpoint.enabled", value=False, hint=hint)
    if not (cfg.trainer.log_every or cfg.trainer.checkpoint_every):
        what = "the kills are timed by log or checkpoint records, and both are off"
        raise UserError(what, key="trainer.log_every", value=0, hint="at least 1")
    given = [override for override in invocation.overrides if key_of(override) not in OWN]
    defaults = {f"trainer.{name}": cfg.trainer[name] for name in INTERVALS}
    if invocation.typed.isdisjoint(HORIZON):
        defaults |= {HORIZON[0]: cfg.trainer.max_steps} | dict.fromkeys(HORIZON[1:])
    flags = [] if invocation.config_dir is None else ["--config-dir", invocation.config_dir]
    added = [setting(key, value) for key, value in defaults.items() if key not in invocation.typed]
    return [*flags, *unquoted(given), *added]


def train_twice(settings: list[str], out: Path, *, kills: int, seed: int, report: Callable[[str], None]) -> list[Kill]:
    """Train into ``out/whole`` without interruption and into ``out/killed`` with kills.

    Returns:
        The kills that came before the end of their run.

    Raises:
        TrainingFailed: a training run exited with an error.
    """
    run = out / "whole"
    with TrainingProcess([*settings, f"run.dir={run}"], run_dir=run, log=out / "whole.log") as whole:
        whole.check(whole.follow())
    report(f"uninterrupted: {max(whole.arrivals, default=0)} steps")
    draw = Random(seed)
    for attempt in range(ATTEMPTS):
        if attempt:
            report("the run ended before the last kill; starting over with different kill times")
            shutil.rmtree(out / "killed")
        hits = train_with_kills(settings, out, kill_times(whole.arrivals, kills, draw), report=report)
        if len(hits) == kills or len(whole.arrivals) < 2:  # a single step leaves no time for a kill
            break
    return hits


def train_with_kills(
    settings: list[str], out: Path, planned: list[KillTime], *, report: Callable[[str], None]
) -> list[Kill]:
    """Train into ``out/killed``, killing the run at the planned times; returns the kills that hit.

    Raises:
        TrainingFailed: a training run exited with an error.
    """
    run = out / "killed"
    hits = []
    for number, kill_time in enumerate([*planned, None], 1):
        arguments = [*settings, f"run.dir={run}", "resume=auto"]
        with TrainingProcess(arguments, run_dir=run, log=out / f"killed-{number}.log") as training:
            code = training.follow(kill_at=kill_time)
        if code is None:
            hits.append(traces_of_kill(run))
            report(f"kill {number} of {len(planned)}: {described(hits[-1])}")
        else:
            training.check(code)
    return hits


def kill_times(arrivals: dict[int, float], kills: int, draw: Random) -> list[KillTime]:
    """Random times between the first step and the last but one, uniform and sorted.

    The time spent on saving counts, so the more often a run saves, the more kills hit a save. A run that is faster
    than ``arrivals`` is killed at its last step but one at the latest.
    """
    steps = sorted(arrivals)
    if len(steps) < 2:
        return []
    first, last = arrivals[steps[0]], arrivals[steps[-2]]
    chosen = []
    for time in sorted(draw.uniform(first, last) for _ in range(kills)):
        step = max(candidate for candidate in steps if arrivals[candidate] <= time)
        chosen.append(KillTime(step=step, delay=time - arrivals[step], latest=steps[-2]))
    return chosen


def traces_of_kill(run: Path) -> Kill:
    """What the run directory shows after a kill."""
    record = last_record(run / METRICS)
    step = 0 if record is None else int(record["step"])
    checkpoint = max(steps_in(run / CHECKPOINTS), default=0)
    saving = any((run / CHECKPOINTS).glob(f"{TEMPORARY}*"))
    return Kill(step=step, checkpoint=checkpoint, again=max(0, step - checkpoint), saving=saving)


def described(kill: Kill) -> str:
    """One kill as a sentence."""
    where = f"after step {kill.step}{', while saving' if kill.saving else ''}"
    return f"{where}; resumes from step {kill.checkpoint}, {kill.again} again"


def compare_runs(whole: Path, killed: Path) -> list[StateDiff]:
    """Compare every tensor and counter of the newest checkpoints, every record, and the list of checkpoints."""
    sections = compare(contents(find(whole)), contents(find(killed)))
    sections.append(compare_records(*(comparable_records(run / METRICS) for run in (whole, killed))))
    names = []
    for run in (whole, killed):
        hints = [read_hint(run / CHECKPOINTS, hint) for hint in ("last", "best")]
        names.append([*steps_in(run / CHECKPOINTS), *(hint.name if hint else None for hint in hints)])
    differences = [] if names[0] == names[1] else [f"steps, last and best: {names[0]} and {names[1]}"]
    return [*sections, StateDiff(name="checkpoints", values=len(names[0]) - 2, differences=differences)]


def verdict(equal: bool, hits: int, missed: int) -> str:
    """The last line of the report."""
    kills = f"{hits} kill{'' if hits == 1 else 's'}"
    if missed:
        return f"verdict: open: the run ended before {missed} of the kills; train more steps"
    if equal:
        return f"verdict: bitwise equal after {kills}"
    advice = "kills=0 tells whether training is deterministic at all" if hits else "training is not deterministic"
    return f"verdict: not equal after {kills}; {advice}"
