"""Checkpoints of the training loop: when to save, and when not to because the weights may be corrupted."""

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
    """The interface of :class:`Checkpointing`; this class saves nothing."""

    overdue = False
    """A periodic checkpoint was postponed."""

    def save(self, *, best: bool, reason: str, is_final: bool) -> None:
        """Start a checkpoint of this step.

        Args:
            best: it is the best so far by the metric that the objective selects by.
            reason: why it is saved; see :meth:`tinyllm.training.callbacks.Callback.on_checkpoint`.
            is_final: no step follows, so it must be complete on return.
        """

    def written(self) -> bool:
        """Whether this rank has no checkpoint part left to write."""
        return True

    def finish_if_written(self, *, all_written: bool) -> None:
        """Publish the pending checkpoint if all ranks have written their parts and its weights are safe."""

    def finish_if_safe(self, *, last_applied_step: int) -> None:
        """Publish the pending checkpoint before an error ends the run, if its weights are safe.

        Args:
            last_applied_step: see :meth:`recovery_hint`.
        """

    def any_saved(self) -> bool:
        """Whether the run has a checkpoint."""
        return False

    def recovery_hint(self, *, last_applied_step: int) -> str:
        """Which checkpoint to resume from, for an error message.

        Args:
            last_applied_step: The last step that was not skipped. It may have corrupted the weights, because every step
                after it failed; checkpoints before it are safe.
        """
        return "checkpoint.enabled=false saved none"


@dataclass(kw_only=True)
class Checkpointing(NoCheckpoints):
    """Checkpoints of a training loop; all ranks must call every method.

    While steps are skipped because of NaN or infinity, nothing is saved, published or pruned: the last applied step may
    have corrupted the weights, and a checkpoint of them would replace a good one. A checkpoint that falls due then is
    saved after the next applied step. A run that must stop then saves its weights only if they give finite gradients.
    """

    state: TrainState
    strategy: Strategy
    saver: Saver
    log: Log
    events: Callback
    has_finite_gradients: Callable[[], bool]
    """Whether a forward and backward pass gives finite gradients; all ranks must call it."""
    directory: Path

    def __post_init__(self) -> None:
        self.pending: tuple[int, str] | None = None
        """Step and reason of the checkpoint being written."""

    def save(self, *, best: bool, reason: str, is_final: bool) -> None:
        """Start a checkpoint of this step; :meth:`finish` publishes it.

        Raises:
            UserError: the weights are not finite; or, with ``is_final`` after skipped steps, their gradients are not.
        """
        if self.state.skipped and not (best or is_final):
            self.overdue = True
            return
        self._check_finite()
        if self.state.skipped and not self.has_finite_gradients():
            if is_final:
                what = f"{self.state.skipped} steps were skipped, and the weights give no finite gradients"
                raise self._bad_weights(what)
            self.overdue = True
            return
        if self.pending:
            self.finish()
        self.strategy.check_replicas_equal(self.state.model)
        self.log.sync()
        self.saver.begin(step=self.state.step, weights=self.state.weights(), state=self.to_save(), best=best)
        self.pending, self.overdue = (self.state.step, reason), False
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
        if not self.state.skipped or self.pending[0] < self.state.step - self.state.skipped:
            self.finish()

    def finish_if_safe(self, *, last_applied_step: int) -> None:
        if self.pending and self.pending[0] < last_applied_step:
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written the pending checkpoint, then publish it.

        Raises:
            UserError: on every rank, if rank 0 could not write its part or publish the whole.
        """
        assert self.pending is not None
        (step, reason), self.pending = self.pending, None
        failure: UserError | None = None
        try:
            self.saver.wait()
        except UserError as error:
            failure = error
        self.strategy.gather([1.0])  # a barrier: from here on no rank is writing
        path = self.strategy.on_rank_zero(partial(self._commit, failure))
        self.events.on_checkpoint(step, path, reason)

    def _commit(self, failure: UserError | None) -> Path:
        if failure is not None:
            raise failure
        return self.saver.commit()

    def any_saved(self) -> bool:
        return bool(steps_in(self.directory))

    def recovery_hint(self, *, last_applied_step: int) -> str:
        steps = steps_in(self.directory)
        good = max((step for step in steps if step < last_applied_step), default=None)
        doubtful = max((step for step in steps if step >= last_applied_step), default=None)
        if doubtful is None and good is None:
            return "no checkpoint was saved before that"
        if doubtful is None:
            return f"{name_of(good or 0)}, the last checkpoint, was saved before that"
        if good is None:
            return f"{name_of(doubtful)}, the only checkpoint, may already contain bad weights"
        return (
            f"{name_of(doubtful)}, the last checkpoint, may already contain bad weights;"
            f" resume={steps[good]} continues from the one before"
        )

    def _check_finite(self) -> None:
        """Refuse to save NaN and infinity: if one rank has any, all ranks raise."""
        average = self.state.average.state_dict().get("shadow", {})
        bad_tensor = first_not_finite([*self.state.model.state_dict().items(), *average.items()])
        rows = self.strategy.gather([float(bad_tensor is not None)])
        if any(row[0] for row in rows):
            raise self._bad_weights("the weights are not finite", where=bad_tensor)

    def _bad_weights(self, what: str, where: str | None = None) -> UserError:
        recovery = self.recovery_hint(last_applied_step=self.state.step - self.state.skipped)
        hint = f"step {self.state.step} was not saved; {recovery}; lower optimizer.lr or trainer.grad_clip"
        return UserError(what, file=where, hint=hint)
