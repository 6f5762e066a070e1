"""Ranges of hyper-parameters that several optimizers share."""

from collections.abc import Sequence


def not_negative(**values: float) -> None:
    """Refuse a negative number.

    Raises:
        ValueError: the sentence names the hyper-parameter.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} is negative: {name} must be at least 0")


def decay_rates(betas: Sequence[float]) -> None:
    """Refuse decay rates outside [0, 1).

    Raises:
        ValueError: one of them is.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={list(betas)} are out of range: each must be at least 0 and below 1")
