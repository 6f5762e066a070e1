"""Sweepers that Hydra finds by the name of this package.

Hydra imports what lies here at every start of every program that uses it, so nothing is imported before it is used.
"""

from collections.abc import Mapping
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Ours(Sweeper):
    """Keeps what Hydra hands over."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from tinyllm.studies.sweep.launcher import Launching

        self.launching = Launching(config=config, context=hydra_context, task=task_function)


class Grid(_Ours):
    """Every combination of the values on the command line.

    Args:
        max_batch_size: jobs handed to the launcher at once; None: all.
        params: more settings of the sweep, from a file.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def sweep(self, arguments: list[str]) -> Any:
        from tinyllm.studies.sweep.grid import sweep

        sweep(self.launching, arguments, batch=self.max_batch_size, params=self.params or {})


class Search(_Ours):
    """Good settings by what earlier jobs have shown, with optuna.

    Args:
        n_trials: jobs in all, failed ones and those of earlier starts included.
        n_jobs: jobs chosen and handed to the launcher at once.
        sampler: how settings are chosen: tpe or random.
        seed: of the sampler.
        direction: minimize or maximize the lowest validation loss.
        params: more settings of the search, from a file.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        seed: int,
        direction: str,
        params: Mapping[str, str] | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "sampler": sampler,
            "seed": seed,
            "direction": direction,
        }
        self.params = params

    def sweep(self, arguments: list[str]) -> Any:
        from tinyllm.studies.sweep.search import search

        search(self.launching, arguments, params=self.params or {}, **self.settings)
