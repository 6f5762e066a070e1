"""The arithmetic of a run: batch, horizon, tokens."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from tinyllm.errors import UserError
from tinyllm.training.curriculum import Curriculum
from tinyllm.utils.text import whole_number

DEFAULT_STEPS = 2000
MOST_MICRO_STEPS = 2**20
"""Of one optimizer step, which collects its micro-batches before it begins."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands: what was done before this start."""

    step: int = 0
    tokens: int = 0
    sequences: int = 0
    """Training sequences consumed."""

    def in_steps_of(self, sequences: int) -> int:
        """Steps of so many sequences that consume as much, to the nearest."""
        return (2 * self.sequences + sequences) // (2 * sequences)


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """The end of a run in optimizer steps.

    A horizon in tokens or epochs is a point in the data. When another batch has been used on the way there, the steps
    that are done are not as many as those of the present batch would be. ``shift`` is the difference, so that learning
    rate and sequence length go on from the same point in the data.
    """

    steps: int
    """Of the present batch, had it been used from the start: what the schedule is planned over."""
    shift: int = 0

    @property
    def max_steps(self) -> int:
        """The step at which the run is complete."""
        return self.steps + self.shift


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """One optimizer step's worth of data."""

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
        """Tokens per optimizer step, of sequences of full length."""
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
    """The batch that ``trainer.*`` asks for.

    Raises:
        UserError: the context is longer than the model's, or the numbers contradict each other.
    """
    if seq_len is not None and seq_len > max_seq_len:
        raise UserError(
            "context longer than the model's",
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
            "the batch is given twice",
            key="trainer.grad_accum_steps",
            value=grad_accum_steps,
            hint=f"leave it out, or leave out trainer.total_batch_tokens={total_batch_tokens}",
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
            hint=f"{tokens // micro} of {micro} tokens; at most {MOST_MICRO_STEPS}, so raise trainer.batch_size",
        )
    return BatchPlan(batch_size=batch_size, grad_accum_steps=tokens // micro, seq_len=seq_len, world_size=world_size)


def regroup(batch: BatchPlan, world_size: int) -> tuple[int, int]:
    """Sequences per rank and micro-step, and micro-steps, that make the same batch on another number of ranks.

    Raises:
        UserError: the ranks do not divide it.
    """
    if batch.sequences % world_size:
        raise UserError(
            "the batch of this run cannot be dealt out evenly",
            key="WORLD_SIZE",
            value=world_size,
            hint=f"it has {batch.sequences} sequences: use a number of ranks that divides them,"
            " or set trainer.batch_size anew",
        )
    mine = batch.sequences // world_size
    size = next(size for size in range(min(batch.batch_size, mine), 0, -1) if mine % size == 0)
    return size, mine // size


def parse_tokens(value: int | str) -> int:
    """A positive integer, also written ``1e6`` or ``2**19``; parsed, never evaluated.

    Raises:
        UserError: it is neither.
    """
    tokens = None if isinstance(value, bool) else whole_number(str(value))
    if tokens is None or tokens < 1:
        raise UserError(
            "not a number of tokens",
            key="trainer.total_batch_tokens",
            value=value,
            hint="a whole number above 0, also written 1e6 or 2**19",
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
    standing: Standing | None = None,
) -> Horizon:
    """The horizon of a run.

    Args:
        epoch_tokens: training tokens of one pass over the training split.
        curriculum: short steps take fewer tokens, so a horizon in tokens or epochs has more of them.
        standing: of a resumed run: what is left of a horizon in tokens or epochs is taken from there.

    Raises:
        UserError: more than one horizon, one shorter than a step, or one that the curriculum does not fit into.
    """
    check_horizon(max_steps=max_steps, max_tokens=max_tokens, max_epochs=max_epochs)
    horizon = Horizon(steps=max_steps or DEFAULT_STEPS)
    if max_tokens is not None or max_epochs is not None:
        standing = standing or Standing()
        done = standing.in_steps_of(batch.sequences)
        steps = _steps_within(
            batch,
            max_tokens=max_tokens,
            max_epochs=max_epochs,
            epoch_tokens=epoch_tokens,
            curriculum=curriculum,
            done=done,
            done_tokens=standing.tokens,
        )
        horizon = Horizon(steps=steps, shift=standing.step - done)
    curriculum.check(horizon.steps)
    return horizon


def plan_steps(batch: BatchPlan, **asked: Any) -> int:
    """The horizon of a run from its start, in optimizer steps; the arguments are those of :func:`plan_horizon`."""
    return plan_horizon(batch, **asked).max_steps


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
    """The most steps whose tokens do not exceed the horizon, those that are ``done`` counted as they were."""
    key, value = ("max_tokens", max_tokens) if max_epochs is None else ("max_epochs", max_epochs)
    tokens = max_tokens if max_epochs is None else int(max_epochs * epoch_tokens)
    assert tokens is not None

    def taken(steps: int) -> int:
        lengths = curriculum.lengths(steps)
        return done_tokens + batch.sequences * (lengths.total(steps) - lengths.total(done))

    most = done + max(0, tokens - done_tokens) // batch.sequences
    steps = max(done, done + bisect_right(range(done, most + 1), tokens, key=taken) - 1)  # more steps, more tokens
    if steps < 1:
        reach = "" if max_epochs is None else f"that is {tokens} tokens of the {epoch_tokens} of an epoch, "
        raise UserError(
            "horizon shorter than one step",
            key=f"trainer.{key}",
            value=value,
            hint=f"{reach}one step takes {taken(1)}; raise it, or lower trainer.batch_size",
        )
    return steps


def check_horizon(*, max_steps: int | None, max_tokens: int | None, max_epochs: float | None) -> None:
    """At most one horizon.

    Raises:
        UserError: there are several.
    """
    given = {"max_steps": max_steps, "max_tokens": max_tokens, "max_epochs": max_epochs}
    named = [f"trainer.{name}={value}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        key, _, value = named[1].partition("=")
        raise UserError("more than one horizon", key=key, value=value, hint=f"give it or {named[0]}, not both")
