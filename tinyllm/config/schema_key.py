"""What the schema says about a key: its allowed values."""

from dataclasses import field
from typing import Any

from omegaconf import MISSING

MOST_STEPS, MOST_TOKENS = 10**12, 10**15
"""Longer horizons are typos: the largest known runs took some 10¹³ tokens."""
MOST_SEQUENCES, MOST_MICRO_STEPS = 2**20, 2**20
"""Most sequences in a micro-batch, and most micro-steps in an optimizer step, whose batches are all in memory."""
PRECISIONS, DEVICES = ("auto", "fp32", "bf16", "fp16"), ("auto", "cpu", "cuda", "mps")
QUANTIZATIONS = ("int8",)
WEIGHTS, SWITCH = ("auto", "raw", "ema"), ("auto", True, False)


def key(
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: int | None = None,
    choices: tuple[Any, ...] = (),
    nonempty: bool = False,
    whole: bool = False,
) -> Any:
    """A dataclass field whose value comes from yaml, with its allowed values.

    Args:
        at_least: smallest allowed number.
        above: numbers must be larger than this.
        below: numbers must be smaller than this.
        at_most: largest allowed number; set where a typo would keep the program busy forever.
        choices: allowed values; with a range, words that are allowed besides numbers.
        nonempty: the string must not be empty.
        whole: numbers must be whole, in a key that also holds words.
    """
    allowed: dict[str, Any] = {"at_least": at_least, "above": above, "below": below, "at_most": at_most}
    allowed |= {"choices": choices, "nonempty": nonempty, "whole": whole}
    return field(default=MISSING, metadata=allowed)
