"""The linear layer that all layers are built from."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tinyllm.nn.inference_linear import InferenceForm, InferenceLinear, PackedLinear, has_packed, reorder_


class Linear(nn.Linear):
    """``torch.nn.Linear`` with keyword arguments, initialized by the model.

    Attributes:
        std_factor: factor on the initial standard deviation, set by the model's parametrization.
    """

    std_factor = 1.0

    def __init__(self, *, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        """Do nothing: the model initializes every weight once, in a fixed order, with ``init_weights``."""

    def init_weights(self, std: float) -> None:
        """Draw weights from N(0, (std · std_factor)²); biases are 0."""
        nn.init.normal_(self.weight, std=std * self.std_factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def resize_outputs(self, d_out: int) -> None:
        """Change the number of outputs of a layer on ``meta``, which holds no weights yet and has no bias."""
        assert self.weight.is_meta and self.bias is None
        self.out_features = d_out
        self.weight = resized_rows(self.weight, d_out)

    def matrix(self) -> Tensor:
        """(d_out, d_in): the matrix that inputs are multiplied with, for products outside of the layer."""
        return self.weight

    def flops(self) -> int:
        """FLOPs for one input vector: a multiplication and an addition per weight."""
        return 2 * self.weight.numel()

    def for_inference(self, form: InferenceForm) -> nn.Module:
        """The layer to replace this one with for inference."""
        if form.streams:
            return InferenceLinear(self.weight, self.bias, form)
        if form.dtype == self.weight.dtype:
            reorder_(self.weight)
            return self
        if has_packed(self.weight.device, form.dtype):
            return PackedLinear(self.weight, self.bias, dtype=form.dtype)
        return InferenceLinear(self.weight, self.bias, form)


def resized_rows(parameter: Tensor, rows: int) -> nn.Parameter:
    """A parameter on ``meta`` with a different number of rows."""
    return nn.Parameter(parameter.new_empty(rows, *parameter.shape[1:]), requires_grad=parameter.requires_grad)


class NeverPackedLinear(Linear):
    """A linear layer that inference never packs, because its weight is read from outside at every step."""

    def for_inference(self, form: InferenceForm) -> nn.Module:
        form = replace(form, may_pack=False)
        if form.dtype == self.weight.dtype:
            return super().for_inference(form)
        return InferenceLinear(self.weight, self.bias, form)


class NeverRoundedLinear(Linear):
    """A linear layer that inference never rounds to a shorter dtype."""

    def for_inference(self, form: InferenceForm) -> nn.Module:
        if form.kernels is None or self.weight.dtype != torch.float32:
            return self
        # In fp32 too: the bits of our kernels do not depend on the number of rows, those of torch's products do.
        return InferenceLinear(self.weight, self.bias, replace(form, dtype=torch.float32, int8=False))
