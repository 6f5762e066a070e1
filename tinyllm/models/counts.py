"""What a model counts about itself: parameters by kind, and the products of frozen matrices."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from tinyllm.nn.grouped_linear import GroupedLinear
from tinyllm.nn.linear import Linear

ParameterKind = Literal["matrix", "head", "embedding", "vector"]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts; a tied table counts once.

    Attributes:
        total: all parameters.
        trained: those that training changes; all, unless adapters train over frozen weights.
        active: parameters used for one token; a mixture uses only its active experts.
        embedding: parameters of look-up tables (tokens, learned positions).
    """

    total: int
    trained: int
    active: int
    embedding: int


def frozen_flops(blocks: nn.Module) -> int:
    """FLOPs for one token of the products with frozen matrices in the forward pass of these blocks."""
    flops = 0
    for layer in blocks.modules():
        if isinstance(layer, Linear) and not layer.weight.requires_grad:
            flops += 2 * layer.weight.numel()
        elif isinstance(layer, GroupedLinear) and not layer.weight.requires_grad:
            flops += 2 * layer.weight[0].numel() * layer.groups.per_token
    return flops
