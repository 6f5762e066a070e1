"""RankStatus: what the ranks tell each other at the end of a step."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """Status of all ranks at the end of a step."""

    signal: int = 0
    """Number of the signal received by the lowest rank that received one; 0: none."""
    all_written: bool = True
    """No rank is still writing its part of a checkpoint."""
    not_finite: Sequence[int] = ()
    """Ranks whose part of the loss is NaN or infinite."""
