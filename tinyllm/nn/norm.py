"""Normalisation over the last dimension. Each norm has the attribute ``eps``, which the QK-norm of
attention shares."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019), computed in fp32."""

    def __init__(self, *, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · weight (+ bias) over the last dimension (Ba et al. 2016), computed
    in fp32."""

    def __init__(self, *, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
