"""The reference of a preference loss: what the weights of the start say about the pairs, read before the first step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from tinyllm.data.batch import Batch
from tinyllm.data.preferences.pairs import PairData, PairSource
from tinyllm.errors import UserError
from tinyllm.programs.run_plan import RunPlan
from tinyllm.runs.checkpoint_parts import STATE
from tinyllm.runs.state_schema import damaged
from tinyllm.training.objectives.base import Objective
from tinyllm.training.objectives.evaluation import read_reference
from tinyllm.training.objectives.pairs import LikelihoodObjective
from tinyllm.training.state import TrainState
from tinyllm.utils.device import autocast
from tinyllm.utils.stop_signal import Stopping


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reads the reference of an objective that needs one, and keeps it in the state; does nothing for others."""

    plan: RunPlan
    state: TrainState
    objective: Objective

    def read(self, stopping: Stopping) -> None:
        """Give the objective the numbers of the state, or read those of the pairs that the planned run uses.

        A resumed run has them in its checkpoint: the weights that it started from may be gone.

        Raises:
            UserError: a resumed run would use pairs whose reference was never read.
            Interrupted: ``stopping`` returned true.
        """
        plan, state, objective = self.plan, self.state, self.objective
        if not isinstance(objective, LikelihoodObjective) or not objective.needs_reference:
            return
        data: Any = plan.data
        assert isinstance(data, PairData)
        if state.reference is None and state.step == 0:
            with plan.strategy.inference_context():
                state.reference = read_reference(
                    objective,
                    self._batches(data),
                    n_pairs=data.n_pairs,
                    device=plan.device,
                    autocast=partial(autocast, plan.device, plan.precision),
                    rank=plan.strategy.rank,
                    world_size=plan.strategy.world_size,
                    gather_objects=plan.strategy.gather_objects,
                    stopping=stopping,
                )
        self._check(data)
        objective.reference = state.reference

    def _samples(self) -> int:
        """Samples of the first epoch that the planned run reads."""
        planned = self.plan.max_steps * self.plan.batch.sequences
        return min(planned, self._source().windows_per_epoch)

    def _source(self) -> PairSource:
        source: Any = self.plan.sampler
        assert isinstance(source, PairSource)
        return source

    def _batches(self, data: PairData) -> Iterator[Batch]:
        """The micro-batches of training as it begins, then those of an evaluation."""
        size, source = self.plan.batch.batch_size, self._source()
        training = (source.batch(np.arange(start, start + size)) for start in range(0, self._samples(), size))
        return chain(training, data.val.eval_batches(seq_len=self.plan.batch.seq_len, batch_size=size))

    def _check(self, data: PairData) -> None:
        """Refuse a table that is not that of the data, or that lacks pairs of the remaining steps."""
        table, plan = self.state.reference, self.plan
        file = plan.resumption.checkpoint.path / STATE if plan.resumption else None
        if table is None or len(table) != data.n_pairs:
            raise damaged(file, f"reference is of {0 if table is None else len(table)} pairs", f"of {data.n_pairs}")
        needed = self._source().pairs(np.arange(self._samples())) + data.train.first
        if bool(table[needed].isnan().any()):
            hint = (
                "the reference was read for the pairs of the steps planned at the start; start a new run with init_from"
            )
            raise UserError(
                "more pairs than the run began with", key="trainer.max_steps", value=plan.max_steps, hint=hint
            )
