"""Callbacks: the events of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyllm.errors import UserError, one_line
from tinyllm.nn.loss import perplexity
from tinyllm.runs.metrics_log import tokens_left


@dataclass(frozen=True, kw_only=True)
class OptimizerGroup:
    """A parameter group of the optimizer, for display."""

    name: str
    tensors: int
    parameters: int
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts about a run, known before its first step; the body of ``run.json``."""

    run_dir: Path
    device: str
    precision: str
    attention_kernel: str
    world_size: int
    parameters: int
    active_parameters: int
    embedding_parameters: int
    tied: bool
    tokenizer: str
    vocab_size: int
    dataset: str
    train_tokens: int
    val_tokens: int
    batch_size: int
    grad_accum_steps: int
    seq_len: int
    tokens_per_step: int
    """With sequences of full length."""
    max_steps: int
    start_step: int
    start_tokens: int
    """Tokens trained on before ``start_step``."""
    planned_tokens: int
    """Training tokens until the end of the run."""
    epochs: float
    flops_per_token: int
    """Training FLOPs per token of a sequence of full length: three times those of the forward pass."""
    peak_flops: float | None
    """Dense peak FLOP/s of all devices at this precision; None: not known, and MFU is not shown."""
    memory_bytes: int
    """Estimated memory of a rank: weights, gradients, optimizer state and activations."""
    learning_rate: float
    """Peak learning rate."""
    learning_rate_from: str
    """Where it comes from: the rule of the optimizer, or set by the user."""
    writes_text: bool = True
    """False: a reward model, which has a score head in place of that over the vocabulary."""
    optimizer_groups: list[OptimizerGroup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration as plain containers; stored in ``config.yaml``, not in ``run.json``."""
    rows_vary: bool = False
    """Rows have lengths of their own, so that ``planned_tokens`` is a guess: padding and answers are not known."""

    def tokens_left(self, *, step: int, trained: float) -> float:
        """Training tokens from a step until the end of the run.

        Args:
            trained: tokens until that step.
        """
        return tokens_left(
            planned=self.planned_tokens,
            rows_vary=self.rows_vary,
            start_step=self.start_step,
            start_tokens=self.start_tokens,
            max_steps=self.max_steps,
            step=step,
            trained=trained,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    status: str
    """``finished``, ``interrupted`` or ``failed``."""
    step: int
    tokens: int
    seconds: float
    run_dir: Path
    metrics: dict[str, float]
    """The last value of every metric."""
    best_step: int | None
    best_val_loss: float | None
    """Best value of ``best_metric``."""
    reason: str = ""
    best_metric: str = "val/loss"
    has_checkpoint: bool = True
    """Whether the run can be resumed and its model loaded."""

    @property
    def best_val_perplexity(self) -> float | None:
        """exp(``best_val_loss``) where that is a cross-entropy per token."""
        of_pairs = self.best_metric != "val/loss" or any(name.startswith("val/pref/") for name in self.metrics)
        return None if self.best_val_loss is None or of_pairs else perplexity(self.best_val_loss)


class Callback:
    """Hooks of a run, which observe it and never change it. By default each does nothing."""

    report: Callable[[str], None] = staticmethod(lambda text: None)
    """Shows a sentence to the user; set by :class:`CallbackList` to its ``on_message``."""

    def on_start(self, info: RunInfo) -> None:
        """Before the first step."""

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Every ``trainer.log_every`` steps and after the last one, before evaluation."""

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """After an evaluation; ``metrics`` holds val/loss, val/ppl and, if the data are text, val/bpb."""

    def on_sample(self, step: int, text: str) -> None:
        """After a sample was generated."""

    def on_record(self, record: dict[str, float]) -> None:
        """After a record was written to ``metrics.jsonl``: step, tokens, flops, seconds and the step's metrics."""

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        """Called once a checkpoint is safely on disk.

        Args:
            reason: ``periodic``, ``best``, ``last`` (of the whole run), ``stop_after_steps``, ``max_minutes``, or the
                name of a signal such as ``SIGTERM``.
        """

    def on_message(self, text: str) -> None:
        """A sentence for the user, such as a skipped step or a damaged checkpoint that is not used."""

    def on_end(self, outcome: Outcome) -> None:
        """At the end of the run, after its last checkpoint, even if it was interrupted or failed."""

    def state_dict(self) -> dict[str, Any]:
        """State to save in checkpoints, such as the id of an external run: plain values under a unique key."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from a checkpoint, before ``on_start``; ``state`` includes the values of all other callbacks."""


class CallbackList(Callback):
    """Passes every event on to several callbacks, in order.

    An exception in a callback is reported once and does not end the run: training must not depend on its display. The
    exception is a :class:`UserError` in :meth:`on_start`, when nothing is trained yet and the user can correct it.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)
        self._failed: set[int] = set()
        for callback in self.callbacks:
            callback.report = self.on_message

    def on_start(self, info: RunInfo) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_start", info, reraise=UserError)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_log", step, metrics)

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_evaluate", step, metrics, is_best)

    def on_sample(self, step: int, text: str) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_sample", step, text)

    def on_record(self, record: dict[str, float]) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_record", dict(record))

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_checkpoint", step, path, reason)

    def on_message(self, text: str) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_message", text)

    def on_end(self, outcome: Outcome) -> None:
        for callback in self.callbacks:
            self._call(callback, "on_end", outcome)

    def state_dict(self) -> dict[str, Any]:
        states: dict[str, Any] = {}
        for callback in self.callbacks:
            states |= self._call(callback, "state_dict") or {}
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            self._call(callback, "load_state_dict", state)

    def _call(self, callback: Callback, event: str, *arguments: Any, reraise: type[Exception] | tuple[()] = ()) -> Any:
        """The result of a callback's method; None if it raised."""
        try:
            return getattr(callback, event)(*arguments)
        except reraise:
            raise
        except Exception as error:
            if id(callback) not in self._failed:
                self._failed.add(id(callback))
                what = one_line(f"{type(error).__name__}: {error}")
                self.on_message(f"{type(callback).__name__} failed in {event} ({what}); training continues")
            return None


Axis = Literal["step", "tokens", "flops", "seconds"]
"""The possible x-axes of a curve; every record has all four."""
