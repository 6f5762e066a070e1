"""What a step trains on, if that is not what the data set holds: answers that the model gives to its prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinyllm.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Experience:
    """The micro-batches of a step, of this rank, and what is known about them.

    Attributes:
        batches: what the objective is given.
        metrics: of the step, over all ranks; logged as they are.
        generated: tokens that the model generated for it, over all ranks.
    """

    batches: Sequence[Batch]
    metrics: dict[str, float] = field(default_factory=dict)
    generated: int = 0


Collect = Callable[[int, Sequence[Batch]], Experience]
"""Called with the number of the step and the micro-batches of the data set."""


def as_read(step: int, batches: Sequence[Batch]) -> Experience:
    """The micro-batches of the data set themselves."""
    return Experience(batches=batches)
