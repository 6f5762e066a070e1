"""Checkpoints of the training loop: when to save, and when not to because the weights may be ruined."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.checkpoint import name_of, steps_in
from tinyllm.runs.checkpoint_writer import Saver
from tinyllm.runs.metrics_log import Log
from tinyllm.training.callbacks import Callback
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.state import TrainState
from tinyllm.utils.tensors import first_not_finite


class NoCheckpoints:
    """Saves nothing; the interface of :class:`Checkpointing`."""

    overdue = False
    """A periodic checkpoint was postponed."""

    def save(self, *, best: bool, cause: str, is_final: bool) -> None:
        """Start a checkpoint of this step.

        Args:
            best: it is the best so far by the metric that the objective selects by.
            cause: why it is saved, for callbacks: best, last, periodic or the name of a signal.
            is_final: no step follows, so it must be complete on return.
        """

    def written(self) -> bool:
        """Whether this rank has no checkpoint part left to write."""
        return True

    def finish_if_written(self, *, all_written: bool) -> None:
        """Publish the pending checkpoint if all ranks have written their parts and its weights can be trusted."""

    def finish_trusted(self, *, taken: int) -> None:
        """Publish the pending checkpoint before an error ends the run, if its weights can be trusted.

        Args:
            taken: see :meth:`advice`.
        """

    def any_saved(self) -> bool:
        """Whether the run has a checkpoint."""
        return False

    def advice(self, *, taken: int) -> str:
        """Which checkpoint to go back to.

        Args:
            taken: the step count after the last step that was not skipped. Its weights are the newest, and no step has
                succeeded from them, so that step may have ruined them; earlier checkpoints are good.
        """
        return "checkpoint.enabled=false saved none"


@dataclass(kw_only=True)
class Checkpointing(NoCheckpoints):
    """Checkpoints of a training loop; all ranks must call every method.

    While steps are skipped because of NaN or infinity, nothing is saved, published or pruned: the last step taken may
    have ruined the weights, and a checkpoint of them would replace a good one. A checkpoint due meanwhile is saved
    after the next step taken. A run that has to stop meanwhile saves only weights that still give finite gradients.
    """

    state: TrainState
    strategy: Strategy
    saver: Saver
    log: Log
    events: Callback
    usable: Callable[[], bool]
    """Whether a forward and backward pass gives finite gradients; all ranks must call it."""
    directory: Path

    def __post_init__(self) -> None:
        self.pending: tuple[int, str] | None = None
        """Step and cause of the checkpoint being written."""

    def save(self, *, best: bool, cause: str, is_final: bool) -> None:
        """Start a checkpoint of this step; :meth:`finish` publishes it.

        Raises:
            UserError: the weights are not finite, or they are final and give no finite gradients.
        """
        if self.state.skipped and not (best or is_final):
            self.overdue = True
            return
        self._check_finite()
        if self.state.skipped and not self.usable():
            if is_final:
                raise self._ruined(f"{self.state.skipped} steps were skipped, and the weights give no finite gradients")
            self.overdue = True
            return
        if self.pending:
            self.finish()
        self.strategy.check_alike(self.state.model)
        self.log.sync()
        self.saver.begin(step=self.state.step, weights=self.state.weights(), state=self.to_save(), best=best)
        self.pending, self.overdue = (self.state.step, cause), False
        if is_final or self.saver.snapshot is None:
            self.finish()

    def to_save(self) -> dict[str, Any]:
        """The content of a checkpoint besides the weights."""
        return self.state.state_dict() | {"loggers": self.events.state_dict()}

    def written(self) -> bool:
        return self.saver.written()

    def finish_if_written(self, *, all_written: bool) -> None:
        if not (self.pending and all_written):
            return
        last_taken = self.state.step - self.state.skipped
        if not self.state.skipped or self.pending[0] < last_taken:
            self.finish()

    def finish_trusted(self, *, taken: int) -> None:
        if self.pending and self.pending[0] < taken:
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written the pending checkpoint, then publish it.

        Raises:
            UserError: on every rank, if rank 0 could not write its part or publish the whole.
        """
        assert self.pending is not None
        (step, cause), self.pending = self.pending, None
        failure: UserError | None = None
        try:
            self.saver.wait()
        except UserError as error:
            failure = error
        self.strategy.gather([1.0])  # a barrier: from here on no rank is writing
        path = self.strategy.on_rank_zero(partial(self._commit, failure))
        self.events.on_checkpoint(step, path, cause)

    def _commit(self, failure: UserError | None) -> Path:
        if failure is not None:
            raise failure
        return self.saver.commit()

    def any_saved(self) -> bool:
        return bool(steps_in(self.directory))

    def advice(self, *, taken: int) -> str:
        steps = steps_in(self.directory)
        good = max((step for step in steps if step < taken), default=None)
        doubtful = max((step for step in steps if step >= taken), default=None)
        if doubtful is None and good is None:
            return "no checkpoint was saved before that"
        if doubtful is None:
            return f"{name_of(good or 0)}, the last checkpoint, was saved before that"
        if good is None:
            return f"{name_of(doubtful)}, the only checkpoint, may already have ruined weights"
        return (
            f"{name_of(doubtful)}, the last checkpoint, may already have ruined weights;"
            f" resume={steps[good]} continues from the one before"
        )

    def _check_finite(self) -> None:
        """Refuse to save NaN and infinity, on all ranks if one of them has any."""
        average = self.state.average.state_dict().get("shadow", {})
        bad_tensor = first_not_finite([*self.state.model.state_dict().items(), *average.items()])
        rows = self.strategy.gather([float(bad_tensor is not None)])
        if any(row[0] for row in rows):
            raise self._ruined("the weights are not finite", where=bad_tensor)

    def _ruined(self, what: str, where: str | None = None) -> UserError:
        advice = self.advice(taken=self.state.step - self.state.skipped)
        hint = f"step {self.state.step} was not saved; {advice}; lower optimizer.lr or trainer.grad_clip"
        return UserError(what, file=where, hint=hint)
