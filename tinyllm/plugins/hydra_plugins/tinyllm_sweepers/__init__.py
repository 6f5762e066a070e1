"""Hydra's sweepers for tinyllm; Hydra finds them by the name of this package.

Functions here import what they need when called. Hydra imports this file whenever any program starts, even one that
never sweeps; module-level imports would load everything a sweep needs (torch, optuna) each time.
"""

from collections.abc import Mapping
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Sweeper(Sweeper):
    """Stores what Hydra hands over."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from tinyllm.studies.sweep.launcher import JobLauncher

        self.job_launcher = JobLauncher(config=config, context=hydra_context, task=task_function)


class Grid(_Sweeper):
    """Runs every combination of the values on the command line.

    Args:
        max_batch_size: number of jobs given to the launcher at once; None: all.
        params: default settings of the sweep.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def sweep(self, arguments: list[str]) -> Any:
        from tinyllm.studies.sweep.grid import run_grid

        run_grid(self.job_launcher, arguments, batch=self.max_batch_size, params=self.params or {})


class Search(_Sweeper):
    """Searches for good settings with optuna, by the results of earlier jobs.

    Args:
        n_trials: total number of jobs, failed ones and those of earlier starts included.
        n_jobs: number of jobs proposed and given to the launcher at once.
        sampler: tpe or random.
        seed: seed of the sampler.
        direction: minimize or maximize; None: as is known of the metric.
        metric: what jobs are compared by; None: what their objective selects the best checkpoint by.
        params: default settings of the search.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        seed: int,
        direction: str | None = None,
        metric: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        self.options: dict[str, Any] = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "sampler": sampler,
            "seed": seed,
            "direction": direction,
            "metric": metric,
        }
        self.params = params

    def sweep(self, arguments: list[str]) -> Any:
        from tinyllm.utils.late_imports import library

        library("optuna", file="hydra/sweeper=search", hint="pip install 'tinyllm[sweep]'")
        from tinyllm.studies.sweep.search import run_search

        run_search(self.job_launcher, arguments, params=self.params or {}, **self.options)
