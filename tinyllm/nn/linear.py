"""The linear layer of every part, and how its weights begin."""

import torch
from torch import nn

from tinyllm.nn.inference_linear import PackedLinear, RoundedLinear, has_packed, reorder_


class Linear(nn.Linear):
    """``torch.nn.Linear`` with keyword arguments, whose weights begin when the model says so.

    Attributes:
        std_factor: on the standard deviation of the first weights, from the model's parametrization.
    """

    std_factor = 1.0

    def __init__(self, *, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: the model draws every weight once, in one order, by ``init_weights``."""

    def init_weights(self, std: float) -> None:
        """Weights from N(0, (std · std_factor)²), biases 0."""
        nn.init.normal_(self.weight, std=std * self.std_factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def flops(self) -> int:
        """Floating-point operations for one input vector: a multiplication and an addition per weight."""
        return 2 * self.weight.numel()

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        """What takes this layer's place in a model that is never trained again and computes in ``dtype``."""
        if dtype == self.weight.dtype:
            reorder_(self.weight)
            return self
        if has_packed(self.weight.device, dtype):
            return PackedLinear(self.weight, self.bias, dtype=dtype)
        return RoundedLinear(self.weight, self.bias, dtype=dtype)


class UnpackedLinear(Linear):
    """A linear layer whose weight others read too, so that it stays a matrix in every form."""

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        if dtype == self.weight.dtype:
            return super().for_inference(dtype)
        return RoundedLinear(self.weight, self.bias, dtype=dtype)


class ExactLinear(Linear):
    """A linear layer that computes with its weight as it is, at any precision."""

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        return super().for_inference(self.weight.dtype)
