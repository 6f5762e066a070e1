"""What makes a multirun a sweep, for the command line; loads nothing that a single run does not need."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Jobs


def jobs() -> "Jobs":
    """How the jobs of a multirun are run, and the exit code of them all."""
    from tinyllm.config.cli.main import Jobs

    main_process = os.getpid()

    def run(cfg: "DictConfig", hydra_node: "DictConfig", work: "Callable[[], int]") -> float | None:
        from tinyllm.studies.sweep.job import run_job

        return run_job(cfg, hydra_node, work, in_main=os.getpid() == main_process)

    return Jobs(run=run, exit_code=exit_code)


def exit_code() -> int:
    """That of the sweep this process has run; 0 if there was none."""
    sweeps = sys.modules.get("tinyllm.studies.sweep.sweep_runner")  # loaded by Hydra's sweeper, if there was a sweep
    return int(sweeps.exit_code()) if sweeps else 0
