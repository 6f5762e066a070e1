"""The C++ kernels of ``decode_kernels.cpp``: built once, called through ctypes.

torch's products of one row reach 40 to 75 % of the memory's bandwidth, these reach 90 % (benchmarks/README.md). They
are an accelerator only: without a compiler everything runs on torch's own operations.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.nn.kernel_build import COMPILE, KernelsUnavailable, built_library

SOURCE = Path(__file__).with_suffix(".cpp")
SOURCES = (
    SOURCE,
    *(SOURCE.with_name(f"decode_{name}.h") for name in ("lanes", "products", "panels", "attention", "step")),
)
INPUT_DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes of inputs and outputs."""
MOST_INPUTS = 2**16
"""Longest row of a matrix: integer sums of int8 weights are then below 2³¹."""


class DecodeKernels:
    """Products of few rows, attention of one query, and whole steps, on contiguous CPU tensors without gradients.

    Args:
        library: the shared library built from ``decode_kernels.cpp``.

    Attributes:
        structure_sizes: bytes of ``Op`` and ``LayerCache`` of ``decode_step.h``.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.structure_sizes = (int(library.size_of_op()), int(library.size_of_layer_cache()))
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._linear, self._attend, self._step, self._linear_packed = {}, {}, {}, {}
        self._packed_inputs: dict[torch.dtype, int] = {}
        for dtype in INPUT_DTYPES:
            name = str(dtype).removeprefix("torch.")
            attend = self._attend[dtype] = library[f"attend_{name}"]
            attend.argtypes = [pointer] * 5 + [number] * 12 + [ctypes.c_float, ctypes.c_int]
            attend.restype = None
            for weights in (dtype, torch.int8):
                linear = library[f"linear_{str(weights).removeprefix('torch.')}_{name}"]
                linear.argtypes = [pointer] * 5 + [number] * 3 + [ctypes.c_int]
                linear.restype = None
                self._linear[weights, dtype] = linear
            step = self._step[dtype] = library[f"step_{name}"]
            signature: list[Any] = [*[pointer, number] * 2, *[pointer] * 5, number, number, pointer, ctypes.c_int]
            step.argtypes = signature
            step.restype = number
            packed = self._linear_packed[dtype] = library[f"linear_packed_{name}"]
            packed.argtypes = [*[pointer] * 4, *[number] * 3, ctypes.c_int]
            packed.restype = None
            self._packed_inputs[dtype] = library[f"packed_inputs_{name}"]()
        self._panel_size: int = library.panel_size()

    def step(self, dtype: torch.dtype) -> Callable[..., int]:
        """The function that runs recorded operations, see ``decode_step.py``."""
        function: Callable[..., int] = self._step[dtype]
        return function

    def linear(self, x: Tensor, weight_OI: Tensor, scale_O: Tensor | None, bias_O: Tensor | None) -> Tensor:
        """(x·Wᵀ)·scale + bias, summed in fp32; a row's bits do not depend on the number of rows or threads.

        Args:
            x: (…, I), fp32 or bf16.
            weight_OI: in the dtype of x, or int8.
            scale_O: fp32; None: 1.
            bias_O: fp32; None: 0.

        Returns:
            (…, O) in the dtype of x.
        """
        n_out, n_in = weight_OI.shape
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], n_out))
        self._linear[weight_OI.dtype, x.dtype](
            weight_OI.data_ptr(),
            None if scale_O is None else scale_O.data_ptr(),
            None if bias_O is None else bias_O.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            x.numel() // n_in,
            n_out,
            n_in,
            torch.get_num_threads(),
        )
        return y

    def can_pack(self, weight_OI: Tensor) -> bool:
        """Whether :meth:`packed` takes a matrix."""
        inputs = self._packed_inputs.get(weight_OI.dtype)
        return inputs is not None and weight_OI.shape[1] % inputs == 0

    def packed(self, weight_OI: Tensor) -> Tensor:
        """A copy of a matrix in the form that :meth:`linear_packed` reads: (panels, I / step, outputs, step)."""
        (n_out, n_in), step = weight_OI.shape, self._packed_inputs[weight_OI.dtype]
        n_panels = -(-n_out // self._panel_size)
        padded = weight_OI.new_zeros(n_panels * self._panel_size, n_in)
        padded[:n_out] = weight_OI
        return padded.view(n_panels, self._panel_size, n_in // step, step).transpose(1, 2).contiguous()

    def unpacked(self, panels: Tensor, *, n_out: int) -> Tensor:
        """The matrix of which :meth:`packed` made these panels."""
        return panels.transpose(1, 2).reshape(len(panels) * self._panel_size, -1)[:n_out]

    def linear_packed(self, x: Tensor, panels: Tensor, bias_O: Tensor | None, *, n_out: int) -> Tensor:
        """x·Wᵀ + bias at the speed of the processor; a row's bits do not depend on the number of rows or threads.

        Args:
            x: (…, I), in the dtype of the matrix.
            panels: of :meth:`packed`.
            bias_O: fp32; None: 0.
        """
        x = x.contiguous()
        y, n_in = x.new_empty((*x.shape[:-1], n_out)), x.shape[-1]
        self._linear_packed[x.dtype](
            panels.data_ptr(),
            None if bias_O is None else bias_O.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            *(x.numel() // n_in, n_out, n_in),
            torch.get_num_threads(),
        )
        return y

    def attend(
        self, q_BHD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, *, scale: float, first_keys_B: Tensor | None = None
    ) -> Tensor:
        """softmax(scale · q·kᵀ)·v of one query per row: (B, H, E). A row's bits do not depend on the other rows.

        Args:
            q_BHD: fp32 or bf16; the others have its dtype, and contiguous vectors.
            first_keys_B: int64, how many of the first keys each query sees, at least 1; None: all.
        """
        q_BHD = q_BHD.contiguous()
        (B, H, D), (G, S, E) = q_BHD.shape, v_BGSE.shape[1:]
        out_BHE = q_BHD.new_empty(B, H, E)
        self._attend[q_BHD.dtype](
            q_BHD.data_ptr(),
            k_BGSD.data_ptr(),
            v_BGSE.data_ptr(),
            out_BHE.data_ptr(),
            None if first_keys_B is None else first_keys_B.data_ptr(),
            *(B, H, G, S, D, E),
            *k_BGSD.stride()[:3],
            *v_BGSE.stride()[:3],
            scale,
            torch.get_num_threads(),
        )
        return out_BHE


@cache
def decode_kernels(folder: Path) -> DecodeKernels:
    """The kernels, built at the first call on a machine and loaded from ``folder`` at later ones.

    Raises:
        KernelsUnavailable: no compiler, or what it built does not work.
    """
    try:
        kernels = DecodeKernels(built_library(folder, SOURCES, COMPILE))
    except AttributeError as error:
        raise KernelsUnavailable(str(error)) from error
    _check(kernels)
    return kernels


def _check(kernels: DecodeKernels) -> None:
    """Compare a small product of every dtype with torch's.

    Raises:
        KernelsUnavailable: they differ.
    """
    numbers = torch.Generator().manual_seed(0)
    weight_OI, x_NI = torch.randn(9, 77, generator=numbers), torch.randn(5, 77, generator=numbers)
    for weights, inputs in kernels._linear:
        w = (weight_OI * 40).round().clamp(-127, 127).to(weights) if weights == torch.int8 else weight_OI.to(weights)
        x = x_NI.to(inputs)
        expected = x.double() @ w.double().T
        error = (kernels.linear(x, w, None, None).double() - expected).abs().max()
        if not error <= 1e-2 * expected.abs().max():
            raise KernelsUnavailable("they compute wrong products here")
