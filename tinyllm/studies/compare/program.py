"""The program ``tinyllm.compare``: prepare, train, report."""

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.programs.builders import plain
from tinyllm.studies.compare.arms import ArmSet
from tinyllm.studies.compare.pipeline import Stopped
from tinyllm.studies.compare.plan import cost_line
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.run_ledger import FINISHED
from tinyllm.studies.compare.runner import (
    Prepared,
    check_study_dir,
    conduct,
    describe_arms,
    locked_study_dir,
    prepare,
    seeds_of,
    study_dir,
    study_plan,
)
from tinyllm.studies.probes.trials import trials_of
from tinyllm.studies.report import send, show, write_report
from tinyllm.utils.stop_signal import listening
from tinyllm.utils.write_errors import readable_write_errors

NOT_FINISHED = 1
"""Exit code when a run failed."""


def compare(cfg: DictConfig, invocation: Invocation) -> int:
    """Carry out the comparison and show its report; returns the exit code.

    Raises:
        UserError: an invalid setting, reported before anything trains; a changed run file; no space for the report.
    """
    screen = Screen(quiet=invocation.json)
    arm_set: ArmSet = invocation.rewrite_result
    prepared = prepare(cfg, invocation, arm_set)
    for arm in prepared.arms if cfg.probes else ():
        trials_of(arm.overrides, cfg.probes, config_dir=invocation.config_dir)  # raises if it cannot be probed
    directory = study_dir(cfg, arm_set)
    if cfg.dry_run:
        show_plan(cfg, invocation, prepared, directory, screen)
        return 0
    with listening() as stop, locked_study_dir(directory), readable_write_errors(directory):
        try:
            study = conduct(cfg, invocation, prepared, directory, stop, screen)
        except Stopped:
            screen.say(f"stopped; the same command continues the study ({directory})")
            return stop.exit_code
        write_report(study, directory)
        send(study, directory, plain(cfg.logger), say=screen.say)
    if invocation.json:
        print(json.dumps(asdict(study)))
    else:
        show(study, directory)
    return 0 if all(run.status == FINISHED for run in study.runs) else NOT_FINISHED


def show_plan(cfg: DictConfig, invocation: Invocation, prepared: Prepared, directory: Path, screen: Screen) -> None:
    """Print the arms and the cost of the study, or the plan as JSON.

    Raises:
        UserError: the directory holds anything but a study.
    """
    check_study_dir(directory)
    plan = study_plan(cfg, invocation, prepared, directory, [] if cfg.seeds == "auto" else seeds_of(cfg, cfg.seeds))
    if invocation.json:
        print(json.dumps(asdict(plan)))
        return
    screen.say(f"study: {directory}")
    describe_arms(prepared.arms, prepared.reference, match=cfg.match, screen=screen)
    screen.say(cost_line(plan))
