"""Position-wise feed-forward layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.nn.linear import Linear
from tinyllm.nn.step_recorder import Buffer, StepRecorder
from tinyllm.nn.train_kernels import TrainKernels

Activation = Callable[[Tensor], Tensor]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)², from Primer (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "mish": F.mish,
    "selu": F.selu,
    "celu": F.celu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

GATES: dict[str, Activation] = {name: ACTIVATIONS[name] for name in ("silu", "gelu", "relu", "sigmoid")}


def lookup(table: dict[str, Activation], name: str, *, parameter: str) -> Activation:
    """The function called ``name`` in ``table``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in table:
        raise ValueError(f"{parameter}={name} is not known: choose one of {' '.join(table)}")
    return table[name]


class Routing(NamedTuple):
    """Routing statistics of a mixture of experts in one forward pass.

    Returned rather than stored on the module, so that activation checkpointing neither loses the gradient of the
    balance loss nor counts tokens twice.
    """

    loss: Tensor
    """Balance loss times its coefficient; fp32 scalar."""
    load_E: Tensor
    """Tokens per routed expert; fp32, no gradient."""


class FeedForward(nn.Module, ABC):
    """The interface of feed-forward layers.

    Attributes:
        d_ff: hidden size.
    """

    d_ff: int

    @abstractmethod
    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Routing | None]:
        """(B, T, C) → (B, T, C), and the routing statistics of a mixture of experts in training."""

    @abstractmethod
    def init_weights(self, *, std: float, residual_std: float) -> None:
        """Initialize the weights, with ``residual_std`` for the projection into the residual stream."""

    @abstractmethod
    def flops_per_token(self) -> int:
        """FLOPs of the forward pass for one token, matrix products only."""

    def inactive_parameters(self) -> int:
        """Number of parameters not used for one token: the inactive experts."""
        return 0

    def has_data_dependent_shapes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether shapes in the forward pass depend on values, such as the tokens per expert.

        Args:
            dtype: dtype of the products.
        """
        return False

    def balance(self, load_E: Tensor) -> None:
        """Update the balancing state after an optimizer step.

        Args:
            load_E: tokens per expert, summed over micro-batches and ranks.
        """


class MLP(FeedForward):
    """down(activation(up(x))).

    Args:
        d_model: width of the residual stream.
        model_d_ff: the model's hidden size, used if ``d_ff`` is None.
        bias: biases in both layers.
        activation: a name of ``ACTIVATIONS``.
        d_ff: hidden size.
        linear: factory of the linear layers; a mixture of experts passes that of its stacked ones.

    Attributes:
        train_kernels: used in training where they know the activation and take its input.
    """

    train_kernels: TrainKernels | None = None

    def __init__(
        self,
        *,
        d_model: int,
        model_d_ff: int,
        bias: bool,
        activation: str,
        d_ff: int | None = None,
        linear: Callable[..., Any] = Linear,
    ) -> None:
        super().__init__()
        self.act, self.activation = lookup(ACTIVATIONS, activation, parameter="activation"), activation
        self.d_ff = _positive(model_d_ff if d_ff is None else d_ff)
        self.up = linear(d_in=d_model, d_out=self.d_ff, bias=bias)
        self.down = linear(d_in=self.d_ff, d_out=d_model, bias=bias)

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, None]:
        hidden_BTF = self.up(x_BTC)
        kernels = self.train_kernels
        if kernels is not None and self.activation == "gelu" and kernels.takes_gelu(hidden_BTF):
            return self.down(kernels.gelu(hidden_BTF)), None
        return self.down(self.act(hidden_BTF)), None

    def record(self, step: StepRecorder, x: Buffer, stream: Buffer) -> None:
        """Record the layer for decoding in C++; its outputs are added to the residual stream."""
        step.record(self.down, step.activate(step.record(self.up, x), self.activation, gated=False), stream)

    def init_weights(self, *, std: float, residual_std: float) -> None:
        self.up.init_weights(std)
        self.down.init_weights(residual_std)

    def flops_per_token(self) -> int:
        return self.up.flops() + self.down.flops()


class GLU(FeedForward):
    """down(gate(x·W_gate) * x·W_up), the gated linear units of Shazeer 2020.

    Args:
        d_model: width of the residual stream.
        model_d_ff: hidden size of a plain MLP in this model. The hidden size here is 2/3 of it, to the nearest multiple
            of 8, so that three matrices have as many parameters as the MLP's two.
        bias: biases in all layers.
        gate: a name of ``GATES``.
        d_ff: hidden size, overriding the 2/3 rule.
        linear: factory of the linear layers, as in ``MLP``.
    """

    def __init__(
        self,
        *,
        d_model: int,
        model_d_ff: int,
        bias: bool,
        gate: str,
        d_ff: int | None = None,
        linear: Callable[..., Any] = Linear,
    ) -> None:
        super().__init__()
        self.act, self.activation = lookup(GATES, gate, parameter="gate"), gate
        # 2/3 · model_d_ff, rounded to a multiple of 8, which suits tensor cores and torch's grouped product
        self.d_ff = max(8, 8 * round(model_d_ff / 12)) if d_ff is None else _positive(d_ff)
        self.gate_up = linear(d_in=d_model, d_out=2 * self.d_ff, bias=bias)  # one product instead of two
        self.down = linear(d_in=self.d_ff, d_out=d_model, bias=bias)

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, None]:
        gate_BTF, up_BTF = self.gate_up(x_BTC).chunk(2, dim=-1)
        return self.down(self.act(gate_BTF) * up_BTF), None

    def record(self, step: StepRecorder, x: Buffer, stream: Buffer) -> None:
        """Record the layer for decoding in C++; its outputs are added to the residual stream."""
        step.record(self.down, step.activate(step.record(self.gate_up, x), self.activation, gated=True), stream)

    def init_weights(self, *, std: float, residual_std: float) -> None:
        self.gate_up.init_weights(std)
        self.down.init_weights(residual_std)

    def flops_per_token(self) -> int:
        return self.gate_up.flops() + self.down.flops()


def _positive(d_ff: int) -> int:
    if d_ff < 1:
        raise ValueError(f"d_ff={d_ff} must be at least 1")
    return d_ff
