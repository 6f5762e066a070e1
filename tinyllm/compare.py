"""``python -m tinyllm.compare attn=mha,gqa,mla seeds=3``: which arm is better, and how sure is that?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

    from tinyllm.config.arguments import CommandLine
    from tinyllm.config.cli import Invocation
    from tinyllm.study.arms import Asked

OWN = (
    *("study", "question", "reference", "match", "match_by", "tolerance", "budget", "seeds", "effect", "max_minutes"),
    *("tune", "tune_trials", "evaluations", "probes", "parallel", "out"),
)
"""Keys and groups of the comparison itself; every other one is training's."""
NOT_FINISHED = 1
"""Exit code when a run failed."""


def main() -> None:
    """Entry point of ``tinyllm-compare``."""
    from tinyllm.config.cli import run

    found: list[Asked] = []

    def reference_settings(line: "CommandLine") -> list[str]:
        from tinyllm.study.arms import take_apart

        found.append(take_apart(line.settings, own=OWN, config_dir=line.config_dir))
        return found[0].of(found[0].arms[0])

    def task(cfg: "DictConfig", invocation: "Invocation") -> int:
        return compare(cfg, invocation, found[0])

    run("compare", task, prepare=reference_settings, several=True)


def compare(cfg: "DictConfig", invocation: "Invocation", asked: "Asked") -> int:
    """Carry the comparison out and show what came of it; returns the exit code.

    Raises:
        UserError: something does not fit, told before anything trains; a file of a run was changed by hand; no space is
            left for the report.
    """
    import json
    from dataclasses import asdict

    from tinyllm.assemble import plain
    from tinyllm.probe import probe_accuracies, trials_of
    from tinyllm.report import send, show, write_report
    from tinyllm.study.comparison import Stopped
    from tinyllm.study.conduct import conduct, place, prepare, taken_hold_of
    from tinyllm.study.ledger import FINISHED
    from tinyllm.study.screen import Screen
    from tinyllm.training.signals import listening
    from tinyllm.utils.files import translated

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


if __name__ == "__main__":
    main()
