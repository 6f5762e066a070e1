"""``python -m tinyllm.train``: train a model, or continue one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.arguments import CommandLine
    from tinyllm.config.cli.main import Invocation, Jobs
    from tinyllm.programs.resume import Resumption


def main(jobs: "Jobs") -> None:
    """Train as the command line says.

    Args:
        jobs: how the jobs of a multirun are run.
    """
    from tinyllm.config.cli.main import run
    from tinyllm.utils.stop_signal import end_with_caller

    end_with_caller()

    found: list[Resumption] = []

    def with_saved_settings(line: "CommandLine") -> list[str]:
        if not any(setting.startswith("resume=") for setting in line.settings):
            if line.multirun:
                from tinyllm.config.cli.arguments import sweep_overrides

                sweep_overrides(line.settings)  # refuses keys that each job is given, for every sweeper
            return line.settings
        from tinyllm.programs.resume import look_up

        resumption = look_up(line)
        found.extend([resumption] if resumption else [])
        return resumption.arguments if resumption else line.settings

    def task(cfg: "DictConfig", invocation: "Invocation") -> int:
        from tinyllm.programs.launch import launched

        code = launched(cfg, invocation)
        if code is not None:
            return code
        from tinyllm.programs.resume import continue_job
        from tinyllm.programs.training_run import train

        resumption = continue_job(cfg, invocation) if invocation.is_job else None
        return train(cfg, invocation, found[0] if found else resumption)

    run("train", task, prepare=with_saved_settings, jobs=jobs)
