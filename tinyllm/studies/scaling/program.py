"""``python -m tinyllm.scaling scaling.budgets=[1e12,3e12,1e13]``: which size is best at a budget of FLOPs?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation


def main() -> None:
    """Entry point of ``tinyllm-scaling``."""
    from tinyllm.config.cli.main import run

    run("scaling", scaling)


def scaling(cfg: "DictConfig", invocation: "Invocation") -> int:
    """Train the ladder, fit the law, write what it says; returns the exit code.

    Raises:
        UserError: something does not fit, told before anything trains; or too few runs finished.
    """
    import json
    from dataclasses import asdict

    from tinyllm.programs.builders import plain
    from tinyllm.studies.compare.pipeline import Stopped
    from tinyllm.studies.compare.progress import Screen
    from tinyllm.studies.compare.runner import taken_hold_of
    from tinyllm.studies.report.scaling import sentences, write_scaling
    from tinyllm.studies.scaling.ladder import check_settings, ladder
    from tinyllm.studies.scaling.study import conduct, place
    from tinyllm.utils.stop_signal import listening

    screen = Screen(quiet=invocation.json)
    check_settings(plain(cfg.scaling), invocation.typed)
    rungs = ladder(cfg, invocation)
    directory = place(cfg, invocation)
    for rung in rungs:
        costs = rung.arm.account
        screen.say(
            f"  {rung.arm.name}: {costs.active_parameters:,} parameters, {costs.flops_per_token:,} FLOPs a token,"
            f" {rung.arm.max_steps} steps, {rung.tokens_per_parameter:.3g} tokens per parameter"
        )
    with listening() as stop, taken_hold_of(directory):
        screen.say(f"study: {directory}")
        try:
            study = conduct(cfg, invocation, rungs, directory, stop, screen)
        except Stopped:
            screen.say(f"stopped; the same command goes on where it was ({directory})")
            return stop.exit_code
        write_scaling(study, directory)
    if invocation.json:
        print(json.dumps(asdict(study)))
    else:
        screen.say("\n".join(sentences(study)))
        screen.say(f"report: {directory / 'scaling.md'}")
    return 0 if all(one.point is not None for one in study.runs) else 1
