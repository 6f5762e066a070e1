"""The C++ kernels of ``train_kernels.cpp`` for training under bf16 autocast on a CPU, called through ctypes.

Each makes one pass over memory where torch's operations make several (benchmarks/README.md). They are an accelerator
only: without a compiler, or where a layer does something that they do not know, torch's own operations are used.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.nn.kernel_build import COMPILE, KernelsUnavailable, built_library

SOURCES = tuple(
    Path(__file__).with_name(f"{name}")
    for name in (
        "train_kernels.cpp",
        *(f"train_{name}.h" for name in ("attention", "elementwise", "head", "products", "lanes")),
        "decode_lanes.h",
    )
)
ONE_THREAD = 2**15
"""Numbers up to which a second thread costs more than it gains."""
HEAD_STEP = 32
"""Sizes of heads are a multiple of this."""
PANEL = 32
"""Rows of a panel of the head; no more than the head is padded to, ``nn.loss.ALIGN``."""
MIN_ITEMS = 8
"""Fewest key heads, of all sequences together, for which attention is divided well among threads."""


class AttentionConfig(NamedTuple):
    """What attention needs besides its inputs.

    Attributes:
        n_heads, n_kv_heads: heads of queries, and of keys and of values.
        scale: factor on q·k.
    """

    n_heads: int
    n_kv_heads: int
    scale: float


class TrainKernels:
    """Norms, GELU, loss and attention of contiguous bf16 tensors on a CPU, with gradients.

    Bits do not depend on the number of threads.

    Args:
        library: the shared library built from ``train_kernels.cpp``.

    Attributes:
        has_products: the processor multiplies bf16 numbers, but has no AMX, with which torch's products are faster;
            attention and logits need it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number, integer, fp32 = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
        self._library = library
        self._lanes, self._part_rows = int(library.lanes()), int(library.part_rows())
        self.has_products = bool(library.has_products()) and not torch.cpu._is_amx_tile_supported()
        signatures: dict[str, list[Any]] = {
            "rms_norm_bfloat16": [*[pointer] * 4, number, number, fp32, integer],
            "rms_norm_backward_bfloat16": [*[pointer] * 6, number, number, integer],
            "gelu_bfloat16": [*[pointer] * 3, number, integer],
            "softmax_loss_bfloat16": [*[pointer] * 3, *[number] * 3, integer],
        }
        if self.has_products:
            signatures["pack_head_float32"] = [pointer, pointer, number, number, integer]
            signatures["logits_bfloat16"] = [*[pointer] * 3, *[number] * 3, integer]
            signatures["attention_forward_bfloat16"] = [*[pointer] * 7, *[number] * 8, fp32, integer]
            signatures["attention_backward_bfloat16"] = [*[pointer] * 11, *[number] * 8, fp32, integer]
        for name, arguments in signatures.items():
            function = library[name]
            function.argtypes, function.restype = arguments, None
            setattr(self, f"_{name.rpartition('_')[0]}", function)

    _rms_norm: Any
    _rms_norm_backward: Any
    _gelu: Any
    _softmax_loss: Any
    _pack_head: Any
    _logits: Any
    _attention_forward: Any
    _attention_backward: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainKernels":
        return self

    def takes_norm(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether :meth:`rms_norm` takes an input, for a result in ``dtype``."""
        return (
            x.dtype == torch.float32
            and dtype == torch.bfloat16
            and x.device.type == "cpu"
            and x.is_contiguous()
            and x.shape[-1] % self._lanes == 0
        )

    def rms_norm(self, x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        """x / √(mean(x²) + eps) · weight over the last dimension, in bf16.

        Args:
            x: (…, C), fp32.
        """
        return _result(_RMSNorm.apply(x, weight_C, eps, self))

    def takes_gelu(self, x: Tensor) -> bool:
        """Whether :meth:`gelu` takes an input."""
        return (
            torch.is_grad_enabled()
            and x.dtype == torch.bfloat16
            and x.device.type == "cpu"
            and x.is_contiguous()
            and x.numel() % self._lanes == 0
        )

    def gelu(self, x: Tensor) -> Tensor:
        """x·Φ(x), with Φ the distribution function of the normal distribution."""
        return _result(_GELU.apply(x, self))

    def head_product(self, weight_VD: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """The function hidden (N, D) → hidden · weightᵀ in bf16, with zeros in the columns up to a multiple of 32.

        None: torch's product is to be used.
        """
        (n_vocab, size), is_bf16 = weight_VD.shape, dtype == torch.bfloat16 and weight_VD.dtype == torch.float32
        is_plain = weight_VD.device.type == "cpu" and weight_VD.is_contiguous() and size % HEAD_STEP == 0
        if not (self.has_products and is_bf16 and is_plain):
            return None
        panels = torch.empty(-(-n_vocab // PANEL), size // 2, PANEL, 2, dtype=torch.bfloat16)
        self._pack_head(weight_VD.data_ptr(), panels.data_ptr(), n_vocab, size, _threads(weight_VD))

        def product(hidden_ND: Tensor) -> Tensor:
            hidden_ND = hidden_ND.contiguous()
            logits_NV = torch.empty(len(hidden_ND), len(panels) * PANEL, dtype=torch.bfloat16)
            pointers = (tensor.data_ptr() for tensor in (hidden_ND, panels, logits_NV))
            self._logits(*pointers, *logits_NV.shape, size, _threads(logits_NV))
            return logits_NV

        return product

    def takes_logits(self, logits_NV: Tensor) -> bool:
        """Whether :meth:`softmax_loss_` takes logits."""
        return logits_NV.dtype == torch.bfloat16 and logits_NV.device.type == "cpu" and logits_NV.is_contiguous()

    def softmax_loss_(self, logits_NV: Tensor, targets_N: Tensor, n_vocab: int) -> Tensor:
        """−log softmax[target] (N,) in fp32; the logits become their gradient, softmax − one-hot.

        Args:
            n_vocab: later columns are padding.
        """
        (n_rows, width), targets_N = logits_NV.shape, targets_N.contiguous()
        losses_N = torch.empty(n_rows, dtype=torch.float32)
        self._softmax_loss(
            logits_NV.data_ptr(), targets_N.data_ptr(), losses_N.data_ptr(), n_rows, n_vocab, width, _threads(logits_NV)
        )
        return losses_N

    def attends(self, device: str, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether :meth:`attention` can be used for heads of this size."""
        return self.has_products and device == "cpu" and dtype == torch.bfloat16 and head_dim % HEAD_STEP == 0

    def takes_heads(self, heads_BTnD: Tensor, n_kv_heads: int) -> bool:
        """Whether :meth:`attention` takes queries, keys and values."""
        # A thread computes all queries of a key head: with few of them, some threads would have nothing to do.
        return (
            self.attends(heads_BTnD.device.type, heads_BTnD.dtype, heads_BTnD.shape[3])
            and heads_BTnD.is_contiguous()
            and heads_BTnD.shape[0] * n_kv_heads >= MIN_ITEMS
        )

    def attention(self, heads_BTnD: Tensor, tables: tuple[Tensor, Tensor] | None, config: AttentionConfig) -> Tensor:
        """Causal attention with rotary positions: (B, T, H, D).

        Args:
            heads_BTnD: queries, keys and values: n = H + 2·G.
            tables: cos and sin (positions, D) of ``nn.position.Rotary``; None: no rotation.
        """
        cos, sin = tables or (None, None)
        return _result(_Attention.apply(heads_BTnD, cos, sin, config, self))


@runtime_checkable
class Accelerated(Protocol):
    """A layer or an objective that uses kernels in training, if it has them."""

    train_kernels: TrainKernels | None


@cache
def train_kernels(folder: Path) -> TrainKernels:
    """The kernels, built at the first call on a machine and loaded from ``folder`` at later ones.

    Raises:
        KernelsUnavailable: no compiler, or what it built does not work.
    """
    try:
        return TrainKernels(built_library(folder, SOURCES, COMPILE))
    except AttributeError as error:
        raise KernelsUnavailable(str(error)) from error


def use_train_kernels(module: nn.Module, kernels: TrainKernels | None) -> None:
    """Use kernels in training wherever they know what a layer does; not with ``torch.compile``."""
    for layer in module.modules():
        if isinstance(layer, Accelerated):
            layer.train_kernels = kernels


def _result(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _threads(tensor: Tensor) -> int:
    return torch.get_num_threads() if tensor.numel() > ONE_THREAD else 1


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, eps: float, kernels: TrainKernels) -> Tensor:
        y = torch.empty(x.shape, dtype=torch.bfloat16)
        scale = torch.empty(x.shape[:-1])
        weight_C = weight_C.detach().float().contiguous()
        kernels._rms_norm(
            *(tensor.data_ptr() for tensor in (x, weight_C, y, scale)), scale.numel(), x.shape[-1], eps, _threads(x)
        )
        ctx.save_for_backward(x, weight_C, scale)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, scale = ctx.saved_tensors
        n_rows, size = scale.numel(), x.shape[-1]
        kernels: TrainKernels = ctx.kernels
        grad, dx = grad.to(torch.bfloat16).contiguous(), torch.empty_like(x)
        dweights = torch.empty(-(-n_rows // kernels._part_rows), size)
        kernels._rms_norm_backward(
            *(tensor.data_ptr() for tensor in (grad, x, weight_C, scale, dx, dweights)), n_rows, size, _threads(x)
        )
        return dx, dweights.sum(0), None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: TrainKernels) -> Tensor:
        y = torch.empty_like(x)
        kernels._gelu(None, x.data_ptr(), y.data_ptr(), x.numel(), _threads(x))
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        ctx.kernels._gelu(grad.data_ptr(), x.data_ptr(), dx.data_ptr(), x.numel(), _threads(x))
        return dx, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, cos: Tensor | None, sin: Tensor | None, config: AttentionConfig, kernels: TrainKernels
    ) -> Tensor:
        B, T, _, D = heads.shape
        out = torch.empty(B, T, config.n_heads, D, dtype=torch.bfloat16)
        logsumexp = torch.empty(B, config.n_heads, T)
        kernels._attention_forward(*_parts(heads, config), *_pointers(cos, sin, out, logsumexp), *_sizes(heads, config))
        ctx.save_for_backward(heads, cos, sin, out, logsumexp)
        ctx.config, ctx.kernels = config, kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, cos, sin, out, logsumexp = ctx.saved_tensors
        config: AttentionConfig = ctx.config
        grad, dheads = grad.contiguous(), torch.empty_like(heads)
        ctx.kernels._attention_backward(
            *_parts(heads, config),
            *_pointers(cos, sin, out, logsumexp, grad),
            *_parts(dheads, config),
            *_sizes(heads, config),
        )
        return dheads, None, None, None, None


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _parts(heads_BTnD: Tensor, config: AttentionConfig) -> list[int]:
    """Addresses of queries, keys and values."""
    first_heads = (0, config.n_heads, config.n_heads + config.n_kv_heads)
    bytes_per_head = heads_BTnD.shape[3] * heads_BTnD.itemsize
    return [heads_BTnD.data_ptr() + head * bytes_per_head for head in first_heads]


def _sizes(heads_BTnD: Tensor, config: AttentionConfig) -> list[int | float]:
    B, T, n, D = heads_BTnD.shape
    return [B, T, config.n_heads, config.n_kv_heads, D, n * D, n * D, n * D, config.scale, torch.get_num_threads()]
