"""What a run tells whoever shows or records it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyllm.errors import UserError, one_line
from tinyllm.nn.loss import perplexity


@dataclass(frozen=True, kw_only=True)
class OptimizerGroup:
    """One group of parameters as the optimizer treats it."""

    name: str
    tensors: int
    parameters: int
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Everything a person wants to know before the first step; also the body of ``run.json``."""

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
    """Of sequences of full length."""
    max_steps: int
    start_step: int
    start_tokens: int
    """What it was trained on before ``start_step``."""
    planned_tokens: int
    """Training tokens of the whole horizon."""
    epochs: float
    flops_per_token: int
    """Training FLOPs of one token of a sequence of full length: three times the forward pass."""
    peak_flops: float | None
    """Dense peak of the device in FLOP/s at this precision; None where it is not known, then MFU is not shown."""
    memory_bytes: int
    """Estimate of what a rank needs: weights, gradients, optimizer state and activations."""
    optimizer_groups: list[OptimizerGroup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration as plain containers; it stands in ``config.yaml`` and not in ``run.json``."""


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
    reason: str = ""
    has_checkpoint: bool = True
    """Whether there is something to resume from or to load."""

    @property
    def best_val_perplexity(self) -> float | None:
        """Of ``best_val_loss``."""
        return None if self.best_val_loss is None else perplexity(self.best_val_loss)


class Callback:
    """Hooks of a run; each does nothing unless overridden. They see the run, they never change it."""

    report: Callable[[str], None] = staticmethod(lambda text: None)
    """Takes a sentence for the person; a :class:`CallbackList` connects it with its ``on_message``."""

    def on_start(self, info: RunInfo) -> None:
        """Before the first step."""

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Every ``trainer.log_every`` steps, and at the last one; also what the bar shows."""

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """After an evaluation; ``metrics`` holds val/loss, val/ppl and, where bytes are known, val/bpb."""

    def on_sample(self, step: int, text: str) -> None:
        """After a sample was drawn."""

    def on_record(self, record: dict[str, float]) -> None:
        """After a line of ``metrics.jsonl`` was written: step, tokens, flops, seconds and the metrics of the step."""

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        """After a checkpoint is durable; ``reason`` is periodic, best, last or the name of a signal."""

    def on_message(self, text: str) -> None:
        """A sentence for the person: a skipped step, a damaged checkpoint passed over."""

    def on_end(self, outcome: Outcome) -> None:
        """After the last step, the last checkpoint and the last evaluation, also after an interruption or error."""

    def state_dict(self) -> dict[str, Any]:
        """What a later start needs to go on here: plain values under a name of its own, saved in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave, before ``on_start``; other loggers' values are in it too."""


class CallbackList(Callback):
    """Passes every event on to several callbacks, in their order.

    A callback that raises is told of once and does not end the run: training does not depend on who looks at it. What
    a person can mend (:class:`UserError`) ends it while nothing is trained yet, in :meth:`on_start`.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)
        self._failed: set[int] = set()
        for one in self.callbacks:
            one.report = self.on_message

    def on_start(self, info: RunInfo) -> None:
        for one in self.callbacks:
            self._call(one, "on_start", info, passed_on=UserError)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        for one in self.callbacks:
            self._call(one, "on_log", step, metrics)

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        for one in self.callbacks:
            self._call(one, "on_evaluate", step, metrics, is_best)

    def on_sample(self, step: int, text: str) -> None:
        for one in self.callbacks:
            self._call(one, "on_sample", step, text)

    def on_record(self, record: dict[str, float]) -> None:
        for one in self.callbacks:
            self._call(one, "on_record", dict(record))

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        for one in self.callbacks:
            self._call(one, "on_checkpoint", step, path, reason)

    def on_message(self, text: str) -> None:
        for one in self.callbacks:
            self._call(one, "on_message", text)

    def on_end(self, outcome: Outcome) -> None:
        for one in self.callbacks:
            self._call(one, "on_end", outcome)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self.callbacks:
            found |= self._call(one, "state_dict") or {}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for one in self.callbacks:
            self._call(one, "load_state_dict", state)

    def _call(self, one: Callback, event: str, *arguments: Any, passed_on: type[Exception] | tuple[()] = ()) -> Any:
        """What the callback's method returns; None if it raised."""
        try:
            return getattr(one, event)(*arguments)
        except passed_on:
            raise
        except Exception as error:
            if id(one) not in self._failed:
                self._failed.add(id(one))
                what = one_line(f"{type(error).__name__}: {error}")
                self.on_message(f"{type(one).__name__} failed in {event} ({what}); training goes on")
            return None


Axis = Literal["step", "tokens", "flops", "seconds"]
"""One of the four that every record carries."""
