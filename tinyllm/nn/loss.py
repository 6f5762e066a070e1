"""Cross-entropy of a linear head, without ever holding all logits."""

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Sum over the targets that are not −100 of −log softmax(hidden · weightᵀ)[target], in nats (scalar,
    fp32)."""
    logits = F.linear(hidden_ND, weight_VD)
    return F.cross_entropy(logits.float(), targets_N, ignore_index=IGNORE, reduction="sum")
