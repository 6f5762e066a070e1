"""The arithmetic of a run: batch, horizon, tokens."""

import re
from bisect import bisect_right
from dataclasses import dataclass

from tinyllm.errors import UserError
from tinyllm.training.curriculum import Curriculum

DEFAULT_STEPS = 2000


@dataclass(frozen=True, kw_only=True)
class Batch:
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
) -> Batch:
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
        return Batch(
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
    return Batch(batch_size=batch_size, grad_accum_steps=tokens // micro, seq_len=seq_len, world_size=world_size)


def regroup(batch: Batch, world_size: int) -> tuple[int, int]:
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
    """A positive integer, also written ``2**19``; parsed, never evaluated.

    Raises:
        UserError: it is neither.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:\*\*\s*(\d{1,2})\s*)?", str(value))
    tokens = int(found[1]) ** int(found[2] or 1) if found and not isinstance(value, bool) else 0
    if tokens < 1:
        raise UserError(
            "not a number of tokens",
            key="trainer.total_batch_tokens",
            value=value,
            hint="a whole number above 0, also written 2**19",
        )
    return tokens


def plan_steps(
    batch: Batch,
    *,
    max_steps: int | None,
    max_tokens: int | None,
    max_epochs: float | None,
    epoch_tokens: int,
    curriculum: Curriculum,
) -> int:
    """The horizon in optimizer steps.

    Args:
        epoch_tokens: training tokens of one pass over the training split.
        curriculum: short steps take fewer tokens, so a horizon in tokens or epochs has more of them.

    Raises:
        UserError: more than one horizon, one shorter than a step, or one that the curriculum does not fit into.
    """
    check_horizon(max_steps=max_steps, max_tokens=max_tokens, max_epochs=max_epochs)
    steps = max_steps or DEFAULT_STEPS
    if max_tokens is not None or max_epochs is not None:
        steps = _steps_within(
            batch, max_tokens=max_tokens, max_epochs=max_epochs, epoch_tokens=epoch_tokens, curriculum=curriculum
        )
    curriculum.check(steps)
    return steps


def _steps_within(
    batch: Batch, *, max_tokens: int | None, max_epochs: float | None, epoch_tokens: int, curriculum: Curriculum
) -> int:
    """The most steps whose tokens do not exceed the horizon."""
    key, value = ("max_tokens", max_tokens) if max_epochs is None else ("max_epochs", max_epochs)
    tokens = max_tokens if max_epochs is None else int(max_epochs * epoch_tokens)
    assert tokens is not None

    def taken(steps: int) -> int:
        return batch.sequences * curriculum.lengths(steps).total(steps)

    steps = bisect_right(range(1 + tokens // batch.sequences), tokens, key=taken) - 1  # more steps take more tokens
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
