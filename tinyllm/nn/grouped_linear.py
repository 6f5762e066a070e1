"""Linear layers with one matrix per expert, applied to rows sorted by expert."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.nn.inference_linear import InferenceForm, inference_matrices, reorder_
from tinyllm.utils.device import gpu_capability
from tinyllm.utils.tensors import autocast_dtype

ALIGNED = 8
"""torch's grouped product requires sizes that are multiples of 16 bytes; 8 elements are enough in every dtype."""

GROUPED_GENERATIONS = (9, 10)
"""Major compute capabilities for which torch has a grouped product."""

ROW_MULTIPLE = 32
"""oneDNN compiles a half-precision product for each new size. Without padding to a multiple of this, nearly every group
of every step has a new size, and compiling takes longer than multiplying: a pass of ``model=nano`` took 330 to 590 ms,
and 125 ms with padding (experiments/LOG.md)."""


class RowGroups:
    """Row range of each expert.

    A mixture of experts sets it with :meth:`assign` right before it runs its experts, whose layers hold the same
    object. It is valid in that forward pass only; products save for themselves what their backward pass needs.

    Args:
        per_token: number of experts of each token.
    """

    ends_E: Tensor
    """End of the rows of each expert (int32)."""
    slices: list[slice]
    """Rows of each expert as slices; empty where one kernel multiplies all groups."""
    padded = True
    """Whether groups are padded where that helps oneDNN, see ``ROW_MULTIPLE``."""

    def __init__(self, per_token: int = 1) -> None:
        self.per_token = per_token

    def assign(self, rows_E: Tensor, n_rows: int, *, dtype: torch.dtype) -> None:
        """Give each expert its rows: the first ``rows_E[0]`` of ``n_rows`` belong to expert 0, and so on.

        Args:
            dtype: dtype of the products.
        """
        self.ends_E = rows_E.cumsum(0).to(torch.int32)
        self.slices = [] if has_grouped_mm(rows_E.device, dtype) else _slices(self.ends_E, n_rows)


def has_grouped_mm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel multiplies all groups, without their sizes being known to the CPU.

    torch has such a kernel for bf16 on GPUs of the generations Hopper and Blackwell. For everything else its
    ``grouped_mm`` reads the sizes on the host and makes a product for each group, as :class:`_Product` does.
    """
    has_kernel = device.type == "cuda" and dtype == torch.bfloat16 and hasattr(F, "grouped_mm")
    return has_kernel and gpu_capability(device)[0] in GROUPED_GENERATIONS


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """The rows of each group are padded to a multiple of this; 1: no padding."""
    return ROW_MULTIPLE if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else 1


def _slices(ends_E: Tensor, n_rows: int) -> list[slice]:
    # On the meta device the counts are unknown; an even split costs the same FLOPs.
    even = (n_rows * (e + 1) // len(ends_E) for e in range(len(ends_E)))
    ends = list(even) if ends_E.is_meta else ends_E.tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class GroupedLinear(nn.Module):
    """``n_experts`` stacked linear layers; each row is multiplied with its expert's matrix.

    Args:
        groups: row range of each expert.

    Attributes:
        std_factor: see ``Linear``.
    """

    std_factor = 1.0

    def __init__(self, *, d_in: int, d_out: int, bias: bool, n_experts: int, groups: RowGroups) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(n_experts, d_out)) if bias else None
        self.groups = groups

    def forward(self, x_NI: Tensor) -> Tensor:
        """(N, d_in) → (N, d_out), rows sorted by expert as in ``groups``."""
        return multiply_groups(x_NI, self.weight, self.bias, self.groups)

    def matrices(self) -> list[Tensor]:
        """The stacks of matrices (E, O, I) that inputs are multiplied with."""
        return [self.weight]

    def uses_grouped_mm(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether one kernel multiplies all groups of these sizes on this device."""
        return all(uses_grouped_mm(stack, device, dtype) for stack in self.matrices())

    def init_weights(self, std: float) -> None:
        """Initialize as ``Linear`` does."""
        nn.init.normal_(self.weight, std=std * self.std_factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def for_inference(self, form: InferenceForm) -> nn.Module:
        """The layer to replace this one with for inference."""
        if form.streams:
            return InferenceGroupedLinear(self, form)
        self.weight.data = self.weight.data.to(form.dtype)
        reorder_(self.weight)
        return self

    def flops(self) -> int:
        """FLOPs for one row, which passes one expert."""
        return 2 * self.weight[0].numel()


class InferenceGroupedLinear(nn.Module):
    """A ``GroupedLinear`` for inference: each expert's matrix with the rows that chose it."""

    def __init__(self, trained: GroupedLinear, form: InferenceForm) -> None:
        super().__init__()
        self.matrices = inference_matrices(trained.weight, trained.bias, form)
        self.groups, self.dtype = trained.groups, form.dtype
        self.groups.padded = form.kernels is None

    def forward(self, x_NI: Tensor) -> Tensor:
        """(N, d_in) → (N, d_out), rows sorted by expert as in ``groups``."""
        y_NO = x_NI.new_empty(len(x_NI), self.matrices[0].n_out, dtype=self.dtype)
        slices = self.groups.slices or _slices(self.groups.ends_E, len(x_NI))
        for matrix, rows in zip(self.matrices, slices, strict=True):
            if rows.start != rows.stop:  # routing may leave an expert without tokens
                y_NO[rows] = matrix(x_NI[rows])
        return y_NO


def multiply_groups(x_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, groups: RowGroups) -> Tensor:
    """Rows (N, I), sorted by expert, times the matrix of their expert: (N, O)."""
    dtype = autocast_dtype(x_NI.device, x_NI.dtype)
    if uses_grouped_mm(weight_EOI, x_NI.device, dtype):
        return grouped_product(x_NI.to(dtype), weight_EOI.to(dtype), bias_EO, groups)
    slices = groups.slices or _slices(groups.ends_E, len(x_NI))
    y_NO = _Product.apply(x_NI, weight_EOI, bias_EO, slices, dtype)
    assert isinstance(y_NO, Tensor)
    return y_NO


def uses_grouped_mm(weight_EOI: Tensor, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel multiplies all groups with a stack of this shape on this device."""
    aligned = weight_EOI.shape[1] % ALIGNED == 0 and weight_EOI.shape[2] % ALIGNED == 0
    return aligned and has_grouped_mm(device, dtype)


def grouped_product(x_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, groups: RowGroups) -> Tensor:
    """The products of all experts by torch's grouped kernel, which reads group sizes on the device."""
    y_NO: Tensor = F.grouped_mm(x_NI, weight_EOI.transpose(1, 2), offs=groups.ends_E)
    if bias_EO is None:
        return y_NO
    # The expert of each row, found on the device: the CPU need not wait for the counts.
    rows = torch.arange(len(y_NO), device=y_NO.device)
    return y_NO + F.embedding(torch.bucketize(rows, groups.ends_E, right=True), bias_EO.to(y_NO.dtype))


class _Product(torch.autograd.Function):
    """One product per expert, written into its rows of the output; an expert without rows gets gradient 0.

    Under autocast the rounded weights are saved for the backward pass, as autocast itself does.
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
                if rows.start == rows.stop:  # routing left this expert without tokens
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
    """Context manager that disables autocast, so that products use the dtypes of their operands."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
