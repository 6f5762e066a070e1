"""Which keys a query sees, and what becomes of its scores."""

from dataclasses import dataclass

LEAST_SOFTCAP = 1e-6
"""Scores are divided by it; 0 divided by less would be no number in fp16."""


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """What a layer's attention does beside being causal.

    Attributes:
        window: W: query i sees keys i−W+1 … i, itself included; 0: all up to i.
        sinks: first positions that every query sees as well (Xiao et al. 2023); needs a window.
        softcap: scores become softcap·tanh(score/softcap) (Gemma Team 2024); 0: they stay as they are.

    Raises:
        ValueError: a number out of range.
    """

    window: int = 0
    sinks: int = 0
    softcap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window", "sinks", "softcap"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be at least 0 and finite; 0 turns it off")
        if 0 < self.softcap < LEAST_SOFTCAP:
            raise ValueError(f"softcap={self.softcap} is too small: at least {LEAST_SOFTCAP:g}; 0 turns it off")
        if self.sinks and not self.window:
            raise ValueError(
                f"sinks={self.sinks} needs window: without one, every query sees the first positions anyway"
            )

    def keys_seen(self, context: int) -> int:
        """Keys that the last of ``context`` positions sees."""
        return min(context, self.window + self.sinks) if self.window else context

    def window_within(self, context: int) -> int:
        """The window; 0 where it is without effect because every query sees all of so few positions."""
        return self.window if context > self.window + self.sinks else 0
