"""Linear layers for inference: matrices stored in the form that is fastest for few rows.

Decoding reads every weight once per token, so the memory's bandwidth bounds its speed, and smaller weights are faster.
``benchmarks/decode_speed.py --products`` measures each form.
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.nn.decode_kernels import INPUT_DTYPES, MOST_INPUTS, DecodeKernels
from tinyllm.nn.step_recorder import Buffer, StepRecorder, Unsupported

LARGEST_INT8 = 127
"""Symmetric: −128 is not used, so that every value has its negative."""
MOST_ROWS = 32
"""Most rows of a product that our kernels compute, if the matrix is not in panels. They gain where the memory is the
limit; with more rows than this the arithmetic is, and torch's products are faster (experiments/LOG.md)."""
MOST_ROWS_BESIDE_AMX = 16
"""The same for bf16 where torch's products use AMX. Not measured with more."""
MOST_INT8_ROWS = 64
"""The same for int8 weights, which torch's products would first have to read and write in full."""


@dataclass(frozen=True, kw_only=True)
class InferenceForm:
    """How a model stores its matrices for inference.

    Attributes:
        dtype: dtype of computation.
        int8: whether weights are rounded to int8, see :func:`quantize_rows`.
        kernels: our own kernels for few rows; None: torch's products.
        many_rows: use our kernels for any number of rows, even where torch's products of many are faster.
        may_pack: whether matrices may be stored in panels.
    """

    dtype: torch.dtype
    int8: bool = False
    kernels: DecodeKernels | None = None
    many_rows: bool = False
    may_pack: bool = True

    @property
    def streams(self) -> bool:
        """Whether matrices become :class:`InferenceMatrix`: in int8, and where our kernels compute in this dtype."""
        return self.int8 or (self.kernels is not None and self.dtype in INPUT_DTYPES)

    @property
    def most_rows(self) -> int:
        """Most rows of a product that our kernels compute."""
        if self.int8:
            return MOST_INT8_ROWS
        return sys.maxsize if self.packs else MOST_ROWS_BESIDE_AMX if self._is_beside_amx else MOST_ROWS

    @property
    def most_kernel_rows(self) -> int:
        """Products of more rows have other bits, since torch makes them; 0: all products are made alike."""
        return 0 if self.kernels is None or self.packs else self.most_rows

    @property
    def packs(self) -> bool:
        """Whether matrices are stored in panels (``DecodeKernels.packed``).

        With them a product of one row is as fast as with rows, and one of many is faster than torch's, unless torch's
        can use AMX (experiments/LOG.md).
        """
        return self.streams and self.may_pack and not self.int8 and (self.many_rows or not self._is_beside_amx)

    @property
    def _is_beside_amx(self) -> bool:
        return self.dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16", False)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 times a scale of its own (symmetric, per output channel).

    Args:
        weight: (…, O, I).

    Returns:
        The int8 weights (…, O, I), and the scales (…, O) in fp32: the largest absolute value of a row over 127. A
        weight differs from int8 · scale by at most half a scale.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(-1) / LARGEST_INT8
    rounded = (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_()
    return rounded.clamp_(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scale


class InferenceMatrix:
    """A matrix and a bias, and their product with rows of input.

    Args:
        weight_OI: in the dtype of computation or int8, contiguous.
        scale_O: scales of int8 rows, fp32; None: not int8.
        bias_O: None: no bias.
    """

    def __init__(self, weight_OI: Tensor, scale_O: Tensor | None, bias_O: Tensor | None, form: InferenceForm) -> None:
        self.n_out, self.scale_O, self.form = len(weight_OI), scale_O, form
        self.bias_O = None if bias_O is None else bias_O.detach().to(form.dtype)
        self._bias_fp32_O = None if bias_O is None else bias_O.detach().float().contiguous()
        usable = weight_OI.device.type == "cpu" and form.dtype in INPUT_DTYPES and weight_OI.shape[1] <= MOST_INPUTS
        self._kernels = form.kernels if usable else None
        packs = form.packs and self._kernels is not None and self._kernels.can_pack(weight_OI)
        self._panels = self._kernels.packed(weight_OI) if self._kernels is not None and packs else None
        self._weight_OI = weight_OI if self._panels is None else None
        self._most_values = weight_OI.shape[1] * form.most_rows

    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O), in the dtype of computation."""
        x = x.to(self.form.dtype)
        if self._kernels is not None and self._panels is not None:
            return self._kernels.linear_packed(x, self._panels, self._bias_fp32_O, n_out=self.n_out)
        if self._kernels is not None and self._weight_OI is not None and x.numel() <= self._most_values:
            return self._kernels.linear(x, self._weight_OI, self.scale_O, self._bias_fp32_O)
        return F.linear(x, self.dense(), self.bias_O)

    def record(self, step: StepRecorder, x: Buffer, stream: Buffer | None = None) -> Buffer:
        """Record the product, see :meth:`StepRecorder.linear`."""
        if self._kernels is None or self.form.dtype != step.dtype:
            raise Unsupported(f"a matrix in {self.form.dtype}")
        if self._panels is not None:
            return step.linear_packed(x, self._panels, self._bias_fp32_O, stream, n_out=self.n_out)
        assert self._weight_OI is not None
        return step.linear(x, self._weight_OI, self.scale_O, self._bias_fp32_O, stream)

    def dense(self) -> Tensor:
        """The matrix in the dtype of computation."""
        if self._weight_OI is None:
            assert self._kernels is not None and self._panels is not None
            return self._kernels.unpacked(self._panels, n_out=self.n_out)
        if self.scale_O is None:
            return self._weight_OI
        return (self._weight_OI * self.scale_O[:, None]).to(self.form.dtype)


def inference_matrices(weight: Tensor, bias: Tensor | None, form: InferenceForm) -> list[InferenceMatrix]:
    """One matrix (O, I), or each of a stack (E, O, I), in the form given; a stack stays one block of memory."""
    weights, scales = quantize_rows(weight) if form.int8 else (weight.detach().to(form.dtype), None)
    weights = weights.contiguous()
    if weight.ndim == 2:
        return [InferenceMatrix(weights, scales, bias, form)]
    return [
        InferenceMatrix(each, None if scales is None else scales[i], None if bias is None else bias[i], form)
        for i, each in enumerate(weights)
    ]


def reorder_(weight: Tensor) -> None:
    """Change the memory order of fp32 CPU matrices (…, d_out, d_in) to column-major, in place; values are unchanged.

    torch's product with one row then takes 0.70 to 0.98 of the time, with 8 rows 2/3. Other devices and dtypes stay
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
    """A linear layer for inference whose weight is stored in the dtype of computation, or as int8.

    Autocast would convert the weight again in every call.

    Attributes:
        most_kernel_rows: see :class:`InferenceForm`.

    Args:
        weight_OI: (d_out, d_in), fp32.
        bias_O: None: no bias.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, form: InferenceForm) -> None:
        super().__init__()
        (self._matrix,) = inference_matrices(weight_OI, bias_O, form)
        self.most_kernel_rows = form.most_kernel_rows

    def matrix(self) -> Tensor:
        """The weight (d_out, d_in) in the dtype of computation; made anew if it is stored as int8 or in panels."""
        return self._matrix.dense()

    def forward(self, x: Tensor) -> Tensor:
        return self._matrix(x)

    def record(self, step: StepRecorder, x: Buffer, stream: Buffer | None = None) -> Buffer:
        """Record the product; its result is also added to ``stream``, if that is given."""
        return self._matrix.record(step, x, stream)
