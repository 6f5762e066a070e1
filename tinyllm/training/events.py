"""What a run tells whoever shows or records it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


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
    max_steps: int
    start_step: int
    epochs: float
    flops_per_token: int
    """Training FLOPs of one token: three times the forward pass."""
    peak_flops: float | None
    """Dense peak of the device in FLOP/s at this precision; None where it is not known, then MFU is not shown."""
    memory_bytes: int
    """Estimate: weights, gradients, optimizer state and activations."""
    optimizer_groups: list[OptimizerGroup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def planned_tokens(self) -> int:
        """Training tokens of the whole horizon."""
        return self.tokens_per_step * self.max_steps


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


class Callback:
    """Hooks of a run; each does nothing unless overridden. They see the run, they never change it."""

    def on_start(self, info: RunInfo) -> None:
        """Before the first step."""

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Every ``trainer.log_every`` steps, and at the last one; also what the bar shows."""

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """After an evaluation; ``metrics`` holds val/loss, val/ppl and, where bytes are known, val/bpb."""

    def on_sample(self, step: int, text: str) -> None:
        """After a sample was drawn."""

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        """After a checkpoint is durable; ``reason`` is periodic, best, last or the name of a signal."""

    def on_message(self, text: str) -> None:
        """A sentence for the person: a skipped step, a damaged checkpoint passed over."""

    def on_end(self, outcome: Outcome) -> None:
        """After the last step, the last checkpoint and the last evaluation, also after an interruption or error."""


class Broadcast(Callback):
    """Passes every event on to several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_start(self, info: RunInfo) -> None:
        for one in self.callbacks:
            one.on_start(info)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        for one in self.callbacks:
            one.on_log(step, metrics)

    def on_evaluate(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        for one in self.callbacks:
            one.on_evaluate(step, metrics, is_best)

    def on_sample(self, step: int, text: str) -> None:
        for one in self.callbacks:
            one.on_sample(step, text)

    def on_checkpoint(self, step: int, path: Path, reason: str) -> None:
        for one in self.callbacks:
            one.on_checkpoint(step, path, reason)

    def on_message(self, text: str) -> None:
        for one in self.callbacks:
            one.on_message(text)

    def on_end(self, outcome: Outcome) -> None:
        for one in self.callbacks:
            one.on_end(outcome)
