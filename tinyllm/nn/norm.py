"""Norms over the last dimension. Their attribute ``eps`` is also the default of attention's QK-norm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.nn.step_recorder import Buffer, StepRecorder
from tinyllm.nn.train_kernels import TrainKernels
from tinyllm.utils.tensors import autocast_dtype

MIN_EPS = 1e-20
"""The gradient has a factor of eps^(−3/2) where the input is 0, which must not overflow fp32."""


def _checked(eps: float) -> float:
    if not eps >= MIN_EPS:
        raise ValueError(f"eps={eps} must be at least {MIN_EPS:g}")
    return eps


def _at_least_fp32(tensor: Tensor) -> Tensor:
    """A tensor in at least fp32; FSDP may gather weights in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019), computed in fp32.

    Under autocast the result has autocast's dtype, to which the next linear layer would cast it anyway.

    Attributes:
        train_kernels: used in training where they take the input.
    """

    train_kernels: TrainKernels | None = None

    def __init__(self, *, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = _checked(eps)
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        dtype = autocast_dtype(x.device, x.dtype)
        if x.device.type != "cpu":  # torch has a fused kernel
            return F.rms_norm(x.float(), self.weight.shape, _at_least_fp32(self.weight), self.eps).to(dtype)
        if not torch.is_grad_enabled():  # decoding is bound by the overhead of calls
            return _rms_norm(_at_least_fp32(x), _at_least_fp32(self.weight), self.eps)[0].to(dtype)
        if self.train_kernels is not None and self.train_kernels.takes_norm(x, dtype):
            return self.train_kernels.rms_norm(x, self.weight, self.eps)
        y = _RMSNorm.apply(x, _at_least_fp32(self.weight), self.eps, dtype)
        assert isinstance(y, Tensor)
        return y

    def record(self, step: StepRecorder, x: Buffer, is_fp32: bool = False) -> Buffer:
        """Record the norm for decoding in C++."""
        return step.norm(x, self.weight, None, eps=self.eps, centers=False, is_fp32=is_fp32)

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x, and the factor (mean(x²) + eps)^(−1/2)."""
    # vector_norm squares and sums in one pass; x.square().mean() would write and read the squares
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in as few passes over memory as torch's operations allow; twice as fast as autograd's on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = _at_least_fp32(x)
        y, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        dim = x.shape[-1]
        grad = grad.to(x.dtype, copy=True)
        # With y = x·s·w and s = (mean(x²) + eps)^(−1/2):  dx = s·(g·w) − x · s³ · mean(x·g·w),  dw = Σ s·(g·x)
        # Both sums over g·x are matrix-vector products, which need no further pass over memory.
        product = (grad * x).reshape(-1, dim)
        dweight = torch.mv(product.t(), scale.reshape(-1))
        correction = torch.mv(product, weight).view(scale.shape).div_(-dim).mul_(scale.pow(3))
        return grad.mul_(weight).mul_(scale).addcmul_(x, correction), dweight, None, None


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · weight (+ bias) over the last dimension (Ba et al. 2016), computed in fp32.

    The result is fp32 in every case, or fp64 for fp64 inputs.
    """

    def __init__(self, *, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = _checked(eps)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _at_least_fp32(self.bias)
        return F.layer_norm(_at_least_fp32(x), self.weight.shape, _at_least_fp32(self.weight), bias, self.eps)

    def record(self, step: StepRecorder, x: Buffer, is_fp32: bool = False) -> Buffer:
        """Record the norm for decoding in C++; rounded, unless ``is_fp32``, as linear layers round their inputs."""
        return step.norm(x, self.weight, self.bias, eps=self.eps, centers=True, is_fp32=is_fp32)

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
