"""Linear layers for inference: weights in the dtype of computation, in the memory order that is fastest for few rows.

Measured by ``benchmarks/decode_speed.py --products``. Decoding reads every weight once per token, so the memory's
bandwidth bounds its speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reorder_(weight: Tensor) -> None:
    """Change the memory order of fp32 CPU matrices (…, d_out, d_in) to column-major, in place; values are unchanged.

    A product with one row then takes 0.90 to 0.98 of the time, with 8 rows 2/3. Other devices and dtypes stay
    unchanged.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        weight.data = weight.data.mT.contiguous().mT


def has_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN supports packed weights on this device in this dtype."""
    ops = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(ops._is_mkldnn_fp16_supported())


class PackedLinear(nn.Module):
    """A half-precision linear layer on the CPU with its weight packed by oneDNN.

    Takes 2/3 of the time of a product that packs the weight first, and a row's result has the same bits whatever the
    number of rows.

    Args:
        weight_OI: (d_out, d_in), copied.
        bias_O: None: no bias.
        dtype: dtype of computation, see :func:`has_packed`.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        # Packed for one row: more rows run just as fast, and without this hint the results would depend on the number
        # of rows.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().to(dtype), 1)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias_O, "none", [], "")
        return y


class InferenceLinear(nn.Module):
    """A linear layer for inference whose weight is stored in the dtype of computation.

    Autocast would convert the weight again in every call.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight_OI.detach().to(dtype)
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias_O)
