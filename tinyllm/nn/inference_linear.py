"""Linear layers for reading only: weights in the number format they are computed in, and in the order in which a
product with few rows reads them fastest (``benchmarks/decode_speed.py --products``)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reorder_(weight: Tensor) -> None:
    """Store fp32 matrices (…, d_out, d_in) on the CPU column by column, in place: the same values at the same indices.

    One row times such a matrix takes 0.90 to 0.98 of the time, 8 rows 2/3 of it. Elsewhere and in other formats
    nothing is changed.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        weight.data = weight.data.mT.contiguous().mT


def has_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies with weights in an order of its own, on this device and in this format."""
    ops = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(ops._is_mkldnn_fp16_supported())


class PackedLinear(nn.Module):
    """A linear layer of half precision on the CPU, its weight in oneDNN's order.

    Takes 2/3 of the time of a product that has to bring the weight into that order first, and gives a row the same
    bits whatever the number of rows.

    Args:
        weight_OI: (d_out, d_in), copied.
        bias_O: added if given.
        dtype: what to compute in, see :func:`has_packed`.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        # For one row; more rows are as fast in that order, and without the hint results depend on their number.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype), 1)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias_O, "none", [], "")
        return y


class RoundedLinear(nn.Module):
    """A linear layer whose weight is kept in the format it is computed in."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight_OI.detach().to(dtype)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias_O)
