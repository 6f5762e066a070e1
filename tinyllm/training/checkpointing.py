"""What the training loop saves, and what it does not: weights that training may have ruined."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.nn.finite import first_not_finite
from tinyllm.runs.checkpoint import name_of, steps_in
from tinyllm.runs.checkpoint_writer import Saver
from tinyllm.runs.metrics_log import Log
from tinyllm.training.callbacks import Callback
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.state import TrainState


class NoCheckpoints:
    """Nothing is saved: what the loop asks for, with nothing behind it."""

    overdue = False
    """A periodic checkpoint was put off."""

    def save(self, *, best: bool, why: str, leaving: bool) -> None:
        """Begin a checkpoint of this step.

        Args:
            best: its ``val/loss`` is the lowest so far.
            why: the reason, for whoever is told of it.
            leaving: no step comes after it, so it has to be whole when this returns.
        """

    def written(self) -> bool:
        """Whether this rank writes nothing at the moment."""
        return True

    def finish_if_written(self, *, all_written: bool) -> None:
        """Publish the checkpoint that is being written, if every rank has written its part and it is to be trusted."""

    def give_up(self, *, taken: int) -> None:
        """Before an error ends the run: publish what was begun and is to be trusted; see :meth:`advice`."""

    def exist(self) -> bool:
        """Whether the run has any."""
        return False

    def advice(self, *, taken: int) -> str:
        """Which checkpoint to go back to.

        Args:
            taken: finished steps after the last one that was taken. A checkpoint of them has the weights that it left,
                which no step has been taken from.
        """
        return "checkpoint.enabled=false saved none"


@dataclass(kw_only=True)
class Checkpointing(NoCheckpoints):
    """The checkpoints of a training loop. Every rank calls every method.

    While steps are skipped for values that are not finite nothing is saved, published or pruned: the last step that was
    taken may have ruined the weights, and a checkpoint of them would push out the good ones. What is due by then is
    saved after the next step that is taken. A run that has to leave by then saves weights that still give a gradient.
    """

    state: TrainState
    strategy: Strategy
    saver: Saver
    log: Log
    events: Callback
    usable: Callable[[], bool]
    """Whether a forward and a backward pass give finite gradients; every rank has to call it."""
    directory: Path

    def __post_init__(self) -> None:
        self.pending: tuple[int, str] | None = None
        """Step and reason of the checkpoint that is being written."""

    def save(self, *, best: bool, why: str, leaving: bool) -> None:
        """Begin a checkpoint of this step; it is published when :meth:`finish` returns.

        Raises:
            UserError: the weights are not finite; or no step can be taken from them, and no other will be.
        """
        if self.state.skipped and not (best or leaving):
            self.overdue = True
            return
        self._check_finite()
        if self.state.skipped and not self.usable():
            if leaving:
                raise self._ruined(
                    f"{self.state.skipped} steps were skipped, and no step can be taken from the weights"
                )
            self.overdue = True
            return
        if self.pending:
            self.finish()
        self.strategy.check_alike(self.state.model)
        self.log.sync()
        self.saver.begin(step=self.state.step, weights=self.state.weights(), state=self.to_save(), best=best)
        self.pending, self.overdue = (self.state.step, why), False
        if leaving or self.saver.snapshot is None:
            self.finish()

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        return self.state.state_dict() | {"loggers": self.events.state_dict()}

    def written(self) -> bool:
        return self.saver.written()

    def finish_if_written(self, *, all_written: bool) -> None:
        if not (self.pending and all_written):
            return
        if not self.state.skipped or self.pending[0] < self.state.step - self.state.skipped:
            self.finish()

    def give_up(self, *, taken: int) -> None:
        if self.pending and self.pending[0] < taken:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, on all ranks; what kept one from it, all of them raise."""
        assert self.pending is not None
        (step, why), self.pending = self.pending, None
        failure: UserError | None = None
        try:
            self.saver.wait()
        except UserError as error:
            failure = error
        self.strategy.gather([1.0])  # every part is written, or is not going to be

        def commit() -> Path:
            if failure is not None:
                raise failure
            return self.saver.commit()

        self.events.on_checkpoint(step, self.strategy.on_rank_zero(commit), why)

    def exist(self) -> bool:
        return bool(steps_in(self.directory))

    def advice(self, *, taken: int) -> str:
        steps = steps_in(self.directory)
        good = max((step for step in steps if step < taken), default=None)
        doubtful = max((step for step in steps if step >= taken), default=None)
        if doubtful is None and good is None:
            return "no checkpoint was saved before"
        if doubtful is None:
            return f"{name_of(good or 0)}, the last checkpoint, was saved before that"
        if good is None:
            return f"{name_of(doubtful)}, the only checkpoint, may have weights that are ruined already"
        return (
            f"{name_of(doubtful)}, the last checkpoint, may have weights that are ruined already;"
            f" resume={steps[good]} goes on from the one before"
        )

    def _check_finite(self) -> None:
        """Refuse to save NaN and infinity, on all ranks if one of them has such weights."""
        average = self.state.average.state_dict().get("shadow", {})
        found = first_not_finite([*self.state.model.state_dict().items(), *average.items()])
        rows = self.strategy.gather([float(found is not None)])
        if any(row[0] for row in rows):
            raise self._ruined("the weights are not finite", where=found)

    def _ruined(self, what: str, where: str | None = None) -> UserError:
        advice = self.advice(taken=self.state.step - self.state.skipped)
        hint = f"step {self.state.step} was not saved; {advice}; lower optimizer.lr or trainer.grad_clip"
        return UserError(what, file=where, hint=hint)
