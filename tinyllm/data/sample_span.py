"""The range of samples that a run reads."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SampleSpan:
    """The samples of a run, on which an order that changes during training depends.

    Attributes:
        total: samples of the whole planned run.
        per_step: samples of each step from this start on.
        step, sample: steps taken and samples read before this start.
        changes: the samples at which the order changed or would have changed, as planned at the last start.
    """

    total: int
    per_step: int
    step: int = 0
    sample: int = 0
    changes: tuple[int, ...] = ()

    def at_step(self, step: int) -> int:
        """The first sample after ``step`` steps."""
        return self.sample + (step - self.step) * self.per_step
