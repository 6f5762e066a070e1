"""``python -m tinyllm.compare attn=mha,gqa,mla seeds=3``: which arm is better, and how sure is that?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

    from tinyllm.config.cli.arguments import CommandLine
    from tinyllm.config.cli.main import Invocation
    from tinyllm.studies.compare.arms import Asked

OWN = (
    *("study", "question", "reference", "match", "match_by", "tolerance", "budget", "seeds", "effect", "max_minutes"),
    *("tune", "tune_trials", "evaluations", "probes", "parallel", "out"),
)
"""Keys and groups of the comparison itself; every other one is training's."""
NOT_FINISHED = 1
"""Exit code when a run failed."""


def main() -> None:
    """Entry point of ``tinyllm-compare``."""
    from tinyllm.config.cli.main import run

    def reference_settings(line: "CommandLine") -> "tuple[list[str], Asked]":
        from tinyllm.studies.compare.arms import take_apart

        asked = take_apart(line.settings, own=OWN, config_dir=line.config_dir)
        return asked.of(asked.arms[0]), asked

    def task(cfg: "DictConfig", invocation: "Invocation") -> int:
        return compare(cfg, invocation, invocation.prepared)

    run("compare", task, prepare=reference_settings, several=True)


def compare(cfg: "DictConfig", invocation: "Invocation", asked: "Asked") -> int:
    """Carry the comparison out and show what came of it; returns the exit code.

    Raises:
        UserError: something does not fit, told before anything trains; a file of a run was changed by hand; no space is
            left for the report.
    """
    import json
    from dataclasses import asdict

    from tinyllm.programs.builders import plain
    from tinyllm.studies.compare.pipeline import Stopped
    from tinyllm.studies.compare.progress import Screen
    from tinyllm.studies.compare.run_ledger import FINISHED
    from tinyllm.studies.compare.runner import conduct, place, prepare, taken_hold_of
    from tinyllm.studies.probes.program import probe_accuracies, trials_of
    from tinyllm.studies.report import send, show, write_report
    from tinyllm.utils.files import translated
    from tinyllm.utils.stop_signal import listening

    screen = Screen(quiet=invocation.json)

    def probe(settings: "Sequence[str]") -> dict[str, float]:
        kept = str(directory / "probes")
        return probe_accuracies(settings, list(cfg.probes), out=kept, config_dir=invocation.config_dir)

    prepared = prepare(cfg, invocation, asked, own=OWN)
    for arm in prepared.arms if cfg.probes else ():
        trials_of(arm.overrides, cfg.probes, config_dir=invocation.config_dir)
    directory = place(cfg, asked)
    with listening() as stop, taken_hold_of(directory), translated(directory):
        try:
            study = conduct(cfg, invocation, prepared, directory, stop, screen, probe)
        except Stopped:
            screen.say(f"stopped; the same command goes on where it was ({directory})")
            return stop.exit_code
        write_report(study, directory)
        send(study, directory, plain(cfg.logger), say=screen.say)
    if invocation.json:
        print(json.dumps(asdict(study)))
    else:
        show(study, directory)
    return 0 if all(run.status == FINISHED for run in study.runs) else NOT_FINISHED
