"""``python -m tinyllm.scaling``: train the ladder, fit the law, report the compute-optimal sizes."""

import json
from dataclasses import asdict

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.programs.builders import plain
from tinyllm.studies.compare.pipeline import Stopped
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.runner import locked_study_dir
from tinyllm.studies.scaling.ladder import check_settings, ladder
from tinyllm.studies.scaling.report import sentences, write_report
from tinyllm.studies.scaling.study import conduct, study_directory
from tinyllm.utils.stop_signal import listening


def scaling(cfg: DictConfig, invocation: Invocation) -> int:
    """Run the study and report it; returns the exit code, which is 1 if a run failed.

    Raises:
        UserError: a setting is wrong (checked before anything is trained), or too few runs finished.
    """
    screen = Screen(quiet=invocation.json)
    check_settings(plain(cfg.scaling), invocation.typed)
    ladder_runs = ladder(cfg, invocation)
    directory = study_directory(cfg, invocation)
    for ladder_run in ladder_runs:
        arm, costs = ladder_run.arm, ladder_run.arm.account
        screen.say(
            f"  {arm.name}: {costs.active_parameters:,} parameters, {costs.flops_per_token:,} FLOPs per token,"
            f" {arm.max_steps} steps, {ladder_run.tokens_per_parameter:.3g} tokens per parameter"
        )
    with listening() as stop, locked_study_dir(directory):
        screen.say(f"study: {directory}")
        try:
            study = conduct(cfg, invocation, ladder_runs, directory, stop, screen)
        except Stopped:
            screen.say(f"stopped; the same command continues from here ({directory})")
            return stop.exit_code
        write_report(study, directory)
    if invocation.json:
        print(json.dumps(asdict(study)))
    else:
        screen.say("\n".join(sentences(study)))
        screen.say(f"report: {directory / 'scaling.md'}")
    return 0 if all(run.fitted is not None for run in study.runs) else 1
