"""Objective: what training minimizes, given a model and a batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tinyllm.data.batch import TOKENS, Batch
from tinyllm.training.expert_load import ExpertLoad

TRAIN_LOSS = "train/loss"
"""The metric that every objective reports: averaged between log lines, and checked for NaN and infinity."""


class Loss(NamedTuple):
    """The loss of one micro-batch, in sums that the loop adds up over micro-batches and ranks.

    A ``NamedTuple``, because DDP looks for tensors in the output of the forward pass and knows it as a container.
    """

    total: Tensor
    """Loss summed over the counted targets (see :meth:`Objective.weight`); a scalar with a gradient."""
    metrics: dict[str, Tensor]
    """Further sums to log, scalars without a gradient; each is logged divided by the weight of the step. The names
    are the same for every batch, and ``train/loss`` is one of them."""
    expert_load: ExpertLoad | None = None
    """How the mixtures of experts spread the tokens; None if no mixture ran."""

    def share_of_step(self, *, weight: int, fraction: float) -> Tensor:
        """The micro-batch's contribution to the loss of the optimizer step; the scalar to call ``backward`` on.

        Args:
            weight: weight of the whole step, over all micro-batches and ranks.
            fraction: the micro-batch's fraction of the step's sequences. A balance loss is a mean over sequences.
        """
        loss = self.total / max(weight, 1)  # 0 and not 0/0 if no target counts
        return loss if self.expert_load is None else loss + self.expert_load.balance_loss * fraction

    def as_nan(self) -> "Loss":
        """The loss as NaN, for ``tinyllm.utils.fault_injection``."""
        metrics = {name: value * math.nan for name, value in self.metrics.items()}
        return self._replace(total=self.total * math.nan, metrics=metrics)


class Objective(nn.Module, ABC):
    """A model together with its loss.

    They are one module, so that a wrapper (DDP, a compiler) sees a single forward pass. The objective also defines
    which training metrics are logged and which metric selects the best checkpoint.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.

    Attributes:
        selects: the metric that decides which checkpoint is the best. The evaluation passed to the ``Trainer`` must
            return it: an objective with a metric of its own brings its own evaluation.
        lower_is_better: whether smaller values of that metric are better.
        reads: the kind of data that it needs.
        needs_reference_model: whether every step compares the model with the one that training started from, whose
            weights then stay in memory.
        scores_answers: whether it trains a reward model: the model has a score head, and no head over the vocabulary.
    """

    selects = "val/loss"
    lower_is_better = True
    reads: ClassVar[str] = TOKENS
    needs_reference_model = False
    scores_answers: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @abstractmethod
    def forward(self, batch: Batch, active_blocks: Sequence[bool] | None = None) -> Loss:
        """The loss of a batch on the model's device.

        Args:
            active_blocks: LayerDrop: whether each block runs; None: all do.
        """

    def weight(self, batch: Batch) -> int:
        """Number of terms in the summed loss; by default the batch's counted targets.

        It is taken from the batch, because the weight of the whole step must be known before the first backward pass:
        each micro-batch's loss is divided by it before its gradients are accumulated.
        """
        return batch.counted

    @property
    def answers_per_sample(self) -> tuple[int, int]:
        """Answers that the model generates for one sample of the data, and the most tokens of each; 0: it does not."""
        return 0, 0

    def example(self, *, sequences: int, length: int) -> Batch:
        """A batch of this shape on the model's device, to try a forward and a backward pass with."""
        ids = torch.zeros(sequences, length, dtype=torch.int64, device=next(self.parameters()).device)
        return Batch(inputs=ids, targets=ids, doc_ids=torch.zeros_like(ids) if self.model.document_mask else None)
