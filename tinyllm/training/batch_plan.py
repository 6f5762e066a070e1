"""The arithmetic of a run: how large a batch is, and how many steps are planned."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from tinyllm.config.horizons import DEFAULT_STEPS
from tinyllm.errors import UserError
from tinyllm.training.curriculum import Curriculum
from tinyllm.utils.text import whole_number

MOST_MICRO_STEPS = 2**20
"""Most micro-steps in an optimizer step, which loads all its micro-batches before it starts."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Progress of a run before this start."""

    step: int = 0
    tokens: int = 0
    sequences: int = 0
    """Training sequences consumed."""

    def in_steps_of(self, sequences: int) -> int:
        """The same progress in steps of ``sequences`` sequences, rounded to the nearest."""
        return (2 * self.sequences + sequences) // (2 * sequences)


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """The planned length of a run in optimizer steps.

    A horizon in tokens or epochs is a point in the data. If earlier starts used a different batch size, they took more
    or fewer steps to the same point than the current batch size would have. ``shift`` is the difference: learning rate
    and sequence length continue from the same point in the data.
    """

    steps: int
    """Steps if the current batch size had been used from the start; the schedule spans them."""
    shift: int = 0
    """Steps already taken, minus the steps the current batch size would have needed."""

    @property
    def max_steps(self) -> int:
        """The step at which the run is complete."""
        return self.steps + self.shift


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Size of the batch of an optimizer step, and how it is divided."""

    batch_size: int
    """Sequences per rank and micro-step."""
    grad_accum_steps: int
    seq_len: int
    world_size: int

    @property
    def sequences(self) -> int:
        """Sequences per optimizer step, over all ranks and micro-steps."""
        return self.batch_size * self.grad_accum_steps * self.world_size

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step with sequences of full length."""
        return self.sequences * self.seq_len


def plan_batch(
    *,
    batch_size: int,
    grad_accum_steps: int | None,
    total_batch_tokens: int | str | None,
    seq_len: int | None,
    max_seq_len: int,
    world_size: int,
) -> BatchPlan:
    """The batch that the settings of ``trainer.*`` describe.

    Raises:
        UserError: ``seq_len`` exceeds the model's context, or ``total_batch_tokens`` does not fit the other sizes.
    """
    if seq_len is not None and seq_len > max_seq_len:
        raise UserError(
            "longer than the model's context",
            key="trainer.seq_len",
            value=seq_len,
            hint=f"at most model.max_seq_len={max_seq_len}",
        )
    seq_len = seq_len or max_seq_len
    if total_batch_tokens is None:
        return BatchPlan(
            batch_size=batch_size, grad_accum_steps=grad_accum_steps or 1, seq_len=seq_len, world_size=world_size
        )
    tokens = parse_tokens(total_batch_tokens)
    if grad_accum_steps is not None:
        raise UserError(
            "the batch size is given twice",
            key="trainer.grad_accum_steps",
            value=grad_accum_steps,
            hint=f"omit it, or omit trainer.total_batch_tokens={total_batch_tokens}",
        )
    micro = batch_size * seq_len * world_size
    if tokens % micro:
        below = tokens // micro * micro
        nearest = f"{below} or {below + micro}" if below else str(micro)
        raise UserError(
            "not a whole number of micro-batches",
            key="trainer.total_batch_tokens",
            value=total_batch_tokens,
            hint=f"batch_size {batch_size} × seq_len {seq_len} × {world_size} rank(s) = {micro} must divide it;"
            f" nearest: {nearest}",
        )
    if tokens // micro > MOST_MICRO_STEPS:
        raise UserError(
            "too many micro-steps",
            key="trainer.total_batch_tokens",
            value=total_batch_tokens,
            hint=f"{tokens // micro} of {micro} tokens each; at most {MOST_MICRO_STEPS}: raise trainer.batch_size",
        )
    return BatchPlan(batch_size=batch_size, grad_accum_steps=tokens // micro, seq_len=seq_len, world_size=world_size)


def regroup(batch: BatchPlan, world_size: int) -> tuple[int, int]:
    """Batch size and accumulation steps that give the same total batch on a different number of ranks.

    Raises:
        UserError: the batch does not divide over the ranks.
    """
    if batch.sequences % world_size:
        raise UserError(
            "the batch does not divide over the ranks",
            key="WORLD_SIZE",
            value=world_size,
            hint=f"it has {batch.sequences} sequences: use a number of ranks that divides {batch.sequences},"
            " or set trainer.batch_size",
        )
    per_rank = batch.sequences // world_size
    size = next(size for size in range(min(batch.batch_size, per_rank), 0, -1) if per_rank % size == 0)
    return size, per_rank // size


def parse_tokens(value: int | str) -> int:
    """Parse a positive integer, which may be written ``1e6`` or ``2**19``; nothing is evaluated.

    Raises:
        UserError: the value is not a positive integer.
    """
    tokens = None if isinstance(value, bool) else whole_number(str(value))
    if tokens is None or tokens < 1:
        raise UserError(
            "not a number of tokens",
            key="trainer.total_batch_tokens",
            value=value,
            hint="a positive whole number; forms such as 1e6 and 2**19 are accepted",
        )
    return tokens


def plan_horizon(
    batch: BatchPlan,
    *,
    max_steps: int | None,
    max_tokens: int | None,
    max_epochs: float | None,
    epoch_tokens: int,
    curriculum: Curriculum,
    progress: RunProgress | None = None,
) -> Horizon:
    """The horizon of a run, given in steps, tokens or epochs.

    Args:
        epoch_tokens: training tokens in one pass over the training split.
        curriculum: shorter sequences take fewer tokens per step, so a horizon in tokens or epochs has more steps.
        progress: of a resumed run, from which the rest of a horizon in tokens or epochs is counted.

    Raises:
        UserError: several horizons are given, or the horizon is shorter than one step or than the curriculum.
    """
    check_horizon(max_steps=max_steps, max_tokens=max_tokens, max_epochs=max_epochs)
    horizon = Horizon(steps=max_steps or DEFAULT_STEPS)
    if max_tokens is not None or max_epochs is not None:
        progress = progress or RunProgress()
        done = progress.in_steps_of(batch.sequences)
        steps = _steps_within(
            batch,
            max_tokens=max_tokens,
            max_epochs=max_epochs,
            epoch_tokens=epoch_tokens,
            curriculum=curriculum,
            done=done,
            done_tokens=progress.tokens,
        )
        horizon = Horizon(steps=steps, shift=progress.step - done)
    curriculum.check(horizon.steps)
    return horizon


def plan_steps(batch: BatchPlan, **settings: Any) -> int:
    """Optimizer steps of a new run; the arguments are those of :func:`plan_horizon`."""
    return plan_horizon(batch, **settings).max_steps


def _steps_within(
    batch: BatchPlan,
    *,
    max_tokens: int | None,
    max_epochs: float | None,
    epoch_tokens: int,
    curriculum: Curriculum,
    done: int,
    done_tokens: int,
) -> int:
    """The most steps whose tokens do not exceed the horizon; the ``done`` steps count with the tokens they used."""
    key, value = ("max_tokens", max_tokens) if max_epochs is None else ("max_epochs", max_epochs)
    tokens = max_tokens if max_epochs is None else int(max_epochs * epoch_tokens)
    assert tokens is not None

    def taken(steps: int) -> int:
        lengths = curriculum.lengths(steps)
        return done_tokens + batch.sequences * (lengths.total(steps) - lengths.total(done))

    most = done + max(0, tokens - done_tokens) // batch.sequences
    steps = max(done, done + bisect_right(range(done, most + 1), tokens, key=taken) - 1)  # taken() is increasing
    if steps < 1:
        reach = "" if max_epochs is None else f"that is {tokens} of the {epoch_tokens} tokens of an epoch, "
        raise UserError(
            "horizon shorter than one step",
            key=f"trainer.{key}",
            value=value,
            hint=f"{reach}one step takes {taken(1)} tokens; raise it, or lower trainer.batch_size",
        )
    return steps


def check_horizon(*, max_steps: int | None, max_tokens: int | None, max_epochs: float | None) -> None:
    """Refuse more than one horizon.

    Raises:
        UserError: more than one is given.
    """
    given = {"max_steps": max_steps, "max_tokens": max_tokens, "max_epochs": max_epochs}
    named = [f"trainer.{name}={value}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        key, _, value = named[1].partition("=")
        raise UserError("more than one horizon", key=key, value=value, hint=f"give this or {named[0]}, not both")
