"""Next-token prediction: cross-entropy of every token given those before it."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from tinyllm.data.batch import Batch
from tinyllm.nn.loss import lm_head_loss
from tinyllm.nn.train_kernels import TrainKernels
from tinyllm.training.expert_load import ExpertLoad
from tinyllm.training.objectives.base import TRAIN_LOSS, Loss, Objective


class NextToken(Objective):
    """Cross-entropy of the targets, optionally with label smoothing and z-loss; attention stays within documents.

    ``train/loss`` is the plain cross-entropy; regularization terms are logged separately.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        chunk_tokens: tokens per chunk of head and loss; auto: chosen by :func:`tinyllm.nn.loss.lm_head_loss`;
            0: no chunks.
        label_smoothing, z_loss: see :func:`tinyllm.nn.loss.lm_head_loss`.

    Attributes:
        train_kernels: used for the loss where they take the logits.

    Raises:
        ValueError: a number is out of range.
    """

    train_kernels: TrainKernels | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        chunk_tokens: int | Literal["auto"] = "auto",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(model)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 1")
        if z_loss < 0:
            raise ValueError(f"z_loss={z_loss} must be at least 0")
        if chunk_tokens != "auto" and chunk_tokens < 0:
            raise ValueError(f"chunk_tokens={chunk_tokens} must be auto or at least 0")
        self.chunk_tokens = None if chunk_tokens == "auto" else chunk_tokens
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def forward(self, batch: Batch, active_blocks: Sequence[bool] | None = None) -> Loss:
        hidden_BTC, routings = self.model.forward_with_routing(
            batch.inputs, active_blocks=active_blocks, doc_ids=batch.doc_ids
        )
        hidden_ND = hidden_BTC.flatten(0, 1)
        head = lm_head_loss(
            hidden_ND,
            self.model.head_weight,
            batch.targets.flatten(),
            chunk_tokens=len(hidden_ND) if self.chunk_tokens == 0 else self.chunk_tokens,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            kernels=self.train_kernels,
        )
        metrics = {TRAIN_LOSS: head.nats}
        if self.label_smoothing:
            metrics["loss/smoothing"] = head.smoothing
        if self.z_loss:
            metrics["loss/z"] = head.z
        return Loss(head.total, metrics, ExpertLoad.of(routings))
