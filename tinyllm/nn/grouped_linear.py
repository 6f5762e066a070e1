"""Linear layers that hold one matrix per expert, and rows of tokens that know whose they are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.nn.inference_linear import reorder_
from tinyllm.utils.tensors import autocast_dtype

ALIGNED = 8
"""Matrices whose sizes are multiples of this are what torch's grouped product takes in every dtype (16 bytes)."""


ROW_MULTIPLE = 32
"""What the rows of a group are filled up to a multiple of where products are compiled per size. Without it nearly every
group of nearly every step has a size never seen before, and compiling takes several times as long as multiplying."""


class RowGroups:
    """Whose rows are whose: the rows of expert e stand behind those of e − 1.

    A mixture of experts says so with :meth:`assign` right before it runs its experts, and their layers, which hold the
    same object, read it. Nothing of it outlives the forward pass that said it: what a backward pass needs, the
    products keep themselves.
    """

    ends_E: Tensor
    """Where the rows of each expert end."""
    slices: list[slice]
    """The rows of each expert, where products are made one expert at a time."""

    def assign(self, rows_E: Tensor, n_rows: int) -> None:
        """The first ``rows_E[0]`` of ``n_rows`` rows are expert 0's, and so on."""
        self.ends_E = rows_E.cumsum(0).to(torch.int32)
        self.slices = [] if has_grouped_mm(rows_E.device) else _slices(self.ends_E, n_rows)


def has_grouped_mm(device: torch.device) -> bool:
    """Whether the device multiplies all groups in one kernel, without telling the CPU how large each is."""
    return device.type == "cuda" and hasattr(F, "grouped_mm")


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """What the rows of a group are filled up to a multiple of; 1: nothing is filled up."""
    return ROW_MULTIPLE if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else 1


def _slices(ends_E: Tensor, n_rows: int) -> list[slice]:
    # On the meta device no row knows its expert; as many for each cost the same.
    even = (n_rows * (e + 1) // len(ends_E) for e in range(len(ends_E)))
    ends = list(even) if ends_E.is_meta else ends_E.tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class GroupedLinear(nn.Module):
    """``n_experts`` linear layers in one; each row goes through that of its expert.

    Args:
        d_in, d_out: widths.
        bias: whether there are biases.
        n_experts: how many.
        groups: says whose the rows are.

    Attributes:
        std_factor: as in ``Linear``.
    """

    std_factor = 1.0

    def __init__(self, *, d_in: int, d_out: int, bias: bool, n_experts: int, groups: RowGroups) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(n_experts, d_out)) if bias else None
        self.groups = groups

    def forward(self, x_NI: Tensor) -> Tensor:
        """Rows (N, d_in) in the order that ``groups`` says → (N, d_out)."""
        groups, dtype = self.groups, autocast_dtype(x_NI.device, x_NI.dtype)
        if self.uses_grouped_mm(x_NI.device):
            return grouped_product(x_NI.to(dtype), self.weight.to(dtype), self.bias, groups)
        slices = groups.slices or _slices(groups.ends_E, len(x_NI))
        y_NO = _Product.apply(x_NI, self.weight, self.bias, slices, dtype)
        assert isinstance(y_NO, Tensor)
        return y_NO

    def uses_grouped_mm(self, device: torch.device) -> bool:
        """Whether the device multiplies all groups of these sizes in one kernel."""
        aligned = self.weight.shape[1] % ALIGNED == 0 and self.weight.shape[2] % ALIGNED == 0
        return aligned and has_grouped_mm(device)

    def init_weights(self, std: float) -> None:
        """Weights and biases as of one linear layer."""
        nn.init.normal_(self.weight, std=std * self.std_factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        """Itself, with its weights in ``dtype`` for good, see ``Linear.for_inference``."""
        self.weight.data = self.weight.data.to(dtype)
        reorder_(self.weight)
        return self

    def flops(self) -> int:
        """Floating-point operations for one row, which passes one expert."""
        return 2 * self.weight[0].numel()


def grouped_product(x_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, groups: RowGroups) -> Tensor:
    """The products of all experts by torch's grouped one, which reads the sizes of the groups on the device."""
    y_NO: Tensor = F.grouped_mm(x_NI, weight_EOI.transpose(1, 2), offs=groups.ends_E)
    if bias_EO is None:
        return y_NO
    rows = torch.arange(len(y_NO), device=y_NO.device)
    return y_NO + F.embedding(torch.bucketize(rows, groups.ends_E, right=True), bias_EO.to(y_NO.dtype))


class _Product(torch.autograd.Function):
    """The products one expert at a time, each written where it belongs; an expert without rows has gradient 0.

    Under autocast the rounded weights are kept for the backward pass, as autocast itself keeps them.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, slices: list[slice], dtype: torch.dtype
    ) -> Tensor:
        x_NI, ctx.x_dtype = x_NI.to(dtype), x_NI.dtype
        weight, bias = weight_EOI.to(dtype), None if bias_EO is None else bias_EO.to(dtype)
        y_NO = x_NI.new_empty(len(x_NI), weight.shape[1])
        with _without_autocast(x_NI):
            for e, rows in enumerate(slices):
                if rows.start == rows.stop:
                    continue
                if bias is None:
                    torch.mm(x_NI[rows], weight[e].t(), out=y_NO[rows])
                else:
                    torch.addmm(bias[e], x_NI[rows], weight[e].t(), out=y_NO[rows])
        ctx.save_for_backward(x_NI, weight)
        ctx.slices, ctx.weight_dtype = slices, weight_EOI.dtype
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = torch.empty_like(x_NI) if needs_x else None
        dweight = torch.empty_like(weight, dtype=ctx.weight_dtype) if needs_weight else None
        dbias = weight.new_empty(weight.shape[:2], dtype=ctx.weight_dtype) if needs_bias else None
        with _without_autocast(x_NI):
            for e, rows in enumerate(ctx.slices):
                if dx is not None and rows.start != rows.stop:
                    torch.mm(dy_NO[rows], weight[e], out=dx[rows])
                if dweight is not None:
                    dweight[e] = dy_NO[rows].t() @ x_NI[rows]
                if dbias is not None:
                    dbias[e] = dy_NO[rows].sum(0)
        return None if dx is None else dx.to(ctx.x_dtype), dweight, dbias, None, None


def _without_autocast(x: Tensor) -> torch.autocast:
    """Autocast off: the products are in the dtypes they are given."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
