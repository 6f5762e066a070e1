"""Recording what a step in C++ computes: the operations of ``decode_step.h``, in the order of a model's parts.

The parts of a model record their operations once, when its weights have their form for inference. A part that records
nothing, or whose class computes differently than the one that records, leaves the model to its own ``forward``, which
computes the same.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm.nn.decode_kernels import DecodeKernels

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu", "sigmoid")
"""The activations that can be recorded, in the order of their numbers in C++."""
ALIGNMENT = 64
"""Bytes of a cache line: threads that write to different buffers do not disturb each other."""


class Unsupported(Exception):
    """A model cannot be recorded; the message names the part."""


class Kind(IntEnum):
    """The operations, numbered as in C++."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    HEADS = 3
    ATTEND = 4
    ACTIVATE = 5
    GATE = 6


class MatrixForm(IntEnum):
    """How a matrix is stored, numbered as in C++."""

    PLAIN = 0
    INT8 = 1
    PACKED = 2


NUMBERS = ("source", "target", "stream", "n_in", "n_out", "heads", "key_heads", "layer", "variant", "is_fp32")


class Op(ctypes.Structure):
    """``Op`` of ``decode_step.h``, which says what each field means."""

    _fields_ = (
        ("kind", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias", "cos", "sin")),
        *((name, ctypes.c_long) for name in NUMBERS),
        ("eps", ctypes.c_double),
    )


class Buffer(NamedTuple):
    """Where a step keeps (B, width) numbers."""

    offset: int
    """Bytes before it in the workspace of one token."""
    width: int


class StepRecorder:
    """Records the operations of a step.

    Args:
        kernels: run the step.
        dtype: of what products read and write; the residual stream is fp32.
    """

    def __init__(self, kernels: DecodeKernels, dtype: torch.dtype) -> None:
        self.kernels, self.dtype = kernels, dtype
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = []
        """Those that the operations point to."""
        self.row_bytes = 0
        """Bytes of the workspace of one token."""
        self._used = 0

    def record(self, part: Any, *inputs: Any, computes: str = "forward") -> Any:
        """What ``part.record(self, *inputs)`` returns, after it has recorded its operations.

        Args:
            computes: the method that these operations stand for.

        Raises:
            Unsupported: the part records nothing, has hooks, or computes differently than it records.
        """
        recorded_by, computed_by = (_defining_class(type(part), name) for name in ("record", computes))
        # A subclass with its own forward and an inherited record would be run as its parent.
        if recorded_by is None or computed_by is None or not issubclass(recorded_by, computed_by):
            raise Unsupported(type(part).__name__)
        if part._forward_hooks or part._forward_pre_hooks:
            raise Unsupported(f"hooks of {type(part).__name__}")
        return part.record(self, *inputs)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Buffers of the block are free again after it."""
        used = self._used
        yield
        self._used = used

    def embed(self, table_VC: Tensor, positions_PC: Tensor | None) -> Buffer:
        """The rows of a token's id and of its position, summed: the residual stream."""
        stream = self._buffer(table_VC.shape[1], torch.float32)
        self._add(
            Kind.EMBED,
            weight=self._fp32(table_VC),
            bias=self._fp32(positions_PC),
            target=stream.offset,
            n_in=table_VC.shape[0],
            n_out=stream.width,
        )
        return stream

    def norm(
        self, source: Buffer, weight: Tensor, bias: Tensor | None, *, eps: float, centers: bool, is_fp32: bool = False
    ) -> Buffer:
        """RMSNorm or, if it ``centers``, LayerNorm, of numbers in fp32.

        Args:
            is_fp32: the result is not rounded to ``dtype``.
        """
        target = self._buffer(source.width, torch.float32 if is_fp32 else self.dtype)
        self._add(
            Kind.NORM,
            weight=self._fp32(weight),
            bias=self._fp32(bias),
            source=source.offset,
            target=target.offset,
            n_out=source.width,
            variant=centers,
            is_fp32=is_fp32,
            eps=eps,
        )
        return target

    def linear(
        self, source: Buffer, weight_OI: Tensor, scale_O: Tensor | None, bias_O: Tensor | None, stream: Buffer | None
    ) -> Buffer:
        """A product, see :meth:`DecodeKernels.linear`; its result is also added to ``stream``, if that is given."""
        target = self._buffer(weight_OI.shape[0], self.dtype)
        self._add(
            Kind.LINEAR,
            weight=self._kept(weight_OI),
            scale=self._fp32(scale_O),
            bias=self._fp32(bias_O),
            source=source.offset,
            target=target.offset,
            stream=-1 if stream is None else stream.offset,
            n_in=weight_OI.shape[1],
            n_out=weight_OI.shape[0],
            variant=MatrixForm.INT8 if weight_OI.dtype == torch.int8 else MatrixForm.PLAIN,
        )
        return target

    def linear_packed(
        self, source: Buffer, panels: Tensor, bias_O: Tensor | None, stream: Buffer | None, *, n_out: int
    ) -> Buffer:
        """The same with a matrix of :meth:`DecodeKernels.packed`."""
        target = self._buffer(n_out, self.dtype)
        self._add(
            Kind.LINEAR,
            weight=self._kept(panels),
            bias=self._fp32(bias_O),
            source=source.offset,
            target=target.offset,
            stream=-1 if stream is None else stream.offset,
            n_in=source.width,
            n_out=n_out,
            variant=MatrixForm.PACKED,
        )
        return target

    def attend(
        self,
        qkv: Buffer,
        *,
        layer: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        tables: tuple[Tensor, Tensor] | None,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        scale: float,
    ) -> Buffer:
        """Norm and rotate queries and keys, write keys and values to the cache, and attend to it.

        Args:
            qkv: the heads of queries, keys and values.
            layer: number of the cache.
            tables: cosines and sines of the rotation; None: none.
            norms: weights of the RMSNorms of queries and keys; None: none.
            eps: of these norms.
            scale: factor on the scores.
        """
        queries, out = (self._buffer(n_heads * head_dim, self.dtype) for _ in range(2))
        shape = {"n_out": head_dim, "heads": n_heads, "key_heads": n_kv_heads, "layer": layer}
        cos, sin = tables or (None, None)
        q_norm, k_norm = norms or (None, None)
        self._add(
            Kind.HEADS,
            weight=self._fp32(q_norm),
            scale=self._fp32(k_norm),
            cos=self._fp32(cos),
            sin=self._fp32(sin),
            source=qkv.offset,
            target=queries.offset,
            eps=eps,
            **shape,
        )
        self._add(Kind.ATTEND, source=queries.offset, target=out.offset, eps=scale, **shape)
        return out

    def activate(self, source: Buffer, activation: str, *, gated: bool) -> Buffer:
        """An activation; gated: of the first half, times the second.

        Raises:
            Unsupported: C++ has no such activation.
        """
        if activation not in ACTIVATIONS:
            raise Unsupported(activation)
        width = source.width // 2 if gated else source.width
        target = self._buffer(width, self.dtype)
        self._add(
            Kind.GATE if gated else Kind.ACTIVATE,
            source=source.offset,
            target=target.offset,
            n_in=source.width,
            n_out=width,
            variant=ACTIVATIONS.index(activation),
        )
        return target

    def _buffer(self, width: int, dtype: torch.dtype) -> Buffer:
        buffer = Buffer(self._used, width)
        self._used += -(-width * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.row_bytes = max(self.row_bytes, self._used)
        return buffer

    def _add(self, kind: Kind, **fields: Any) -> None:
        self.ops.append(Op(kind=kind, **fields))

    def _kept(self, tensor: Tensor) -> int:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unsupported(f"a weight on {tensor.device} with strides {tensor.stride()}")
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def _fp32(self, tensor: Tensor | None) -> int | None:
        if tensor is not None and tensor.dtype != torch.float32:
            raise Unsupported(f"a weight in {tensor.dtype}")
        return None if tensor is None else self._kept(tensor.detach())


def _defining_class(kind: type, name: str) -> type | None:
    return next((each for each in kind.__mro__ if name in vars(each)), None)
