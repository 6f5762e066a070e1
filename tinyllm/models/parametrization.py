"""Parametrizations: how initial weights, learning rates and multipliers depend on the model's width."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from tinyllm.nn.attention.base import Attention
from tinyllm.nn.grouped_linear import GroupedLinear
from tinyllm.nn.linear import Linear
from tinyllm.nn.short_conv import ShortConv

UpdateNorm = Callable[[int, int], float]
"""(rows, columns) → spectral norm of an optimizer's step at learning rate 1, up to a constant."""


@dataclass(frozen=True)
class MatrixScaling:
    """How a matrix scales with the width: its shape, and its shape at the base width.

    Shapes are rows (fan-out) by columns (fan-in); a side that differs between the two grows with the width. A layer's
    output and its change per step keep their size if the spectral norms of the weight matrix and of its update are
    proportional to √(rows/columns) (Yang, Simon & Bernstein 2023, https://arxiv.org/abs/2310.17813, condition 1).

    Attributes:
        multiplier: factor on the layer's output, relative to the base width.
    """

    shape: tuple[int, int]
    base_shape: tuple[int, int]
    multiplier: float = 1.0

    @property
    def std_factor(self) -> float:
        """Factor on the initial standard deviation, relative to the base shape (Yang et al. 2022, table 3).

        1/√fan_in where both sides grow, 1/fan_in where only fan_in does.
        """
        (rows, columns), (base_rows, base_columns) = self.shape, self.base_shape
        fan_in = columns / base_columns
        return 1 / fan_in if rows == base_rows else fan_in**-0.5

    def rate_factor(self, norm: UpdateNorm) -> float:
        """Factor on the learning rate, relative to the base shape; 1/fan_in for Adam, whose entries all move alike."""
        factor, base_factor = (
            (rows / columns) ** 0.5 / norm(rows, columns) for rows, columns in (self.shape, self.base_shape)
        )
        return factor / base_factor / self.multiplier


class ModelScaling(NamedTuple):
    """The factors that a parametrization gives a model.

    Attributes:
        output_multiplier: factor on the hidden states that the head reads, and so on the logits.
        scalings: by parameter name, for matrices whose learning rate differs from that at the base width.
    """

    output_multiplier: float
    scalings: dict[str, MatrixScaling]


class Parametrization(ABC):
    """The interface of parametrizations."""

    @abstractmethod
    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        """Set the scale of attention and the ``std_factor`` of linear layers, and return the other factors.

        Args:
            model: not initialized yet.
            build: builds the same model in a different shape, with ``Standard``.
            shape: ``d_model``, ``n_heads``, ``n_kv_heads`` and ``d_ff``.

        Raises:
            ValueError: the model cannot be scaled.
        """


class Standard(Parametrization):
    """The same initialization and learning rates at every width."""

    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        return ModelScaling(1.0, {})


class MuP(Parametrization):
    """Maximal update parametrization (Yang et al. 2022, https://arxiv.org/abs/2203.03466, tables 3 and 8).

    The model is compared with its base model: the same composition with d_model = ``base_width``. Sizes set explicitly
    (``head_dim``, ``kv_latent_dim``, a part's own ``d_ff``) are the same there; sizes derived from the model's shape
    are derived from the base shape. A side of a matrix that differs between the two grows with the width:

    - a matrix starts with std ∝ 1/√fan_in, or 1/fan_in if its fan-out does not grow (a router, a fixed-size latent);
    - its learning rate is such that a step changes its output as much as at the base width;
    - the attention scale is ∝ 1/head_dim instead of 1/√head_dim, and equal at the head size of the base model;
    - logits are multiplied with base_width/d_model; the head is initialized and trained like an embedding, so it may be
      tied;
    - embeddings, positions, gains and biases are unchanged.

    At the base width every factor is 1.

    Args:
        base_width: d_model of the base model.
        base_heads: number of query heads of the base model, with the same ratio of key-value heads; None: ``n_heads``.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, *, base_width: int, base_heads: int | None) -> None:
        if base_width < 1:
            raise ValueError(f"base_width={base_width} must be at least 1")
        if base_heads is not None and base_heads < 1:
            raise ValueError(f"base_heads={base_heads} must be at least 1")
        self.base_width, self.base_heads = base_width, base_heads

    def base_shape(self, *, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> dict[str, int]:
        """The shape of the base model."""
        heads = n_heads if self.base_heads is None else self.base_heads
        # The largest number of key-value heads that divides the heads and does not exceed the model's ratio, so that
        # the base model is the same architecture as far as whole heads allow. Exact where n_heads is the same.
        kv_heads = (k for k in range(1, heads + 1) if heads % k == 0 and k * n_heads <= n_kv_heads * heads)
        return {
            "d_model": self.base_width,
            "n_heads": heads,
            "n_kv_heads": max(kv_heads, default=1),
            "d_ff": max(1, round(d_ff * self.base_width / d_model)),
        }

    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        with torch.device("meta"):  # only shapes are compared, so the base model needs no memory
            try:
                base = build(**self.base_shape(**shape))
            except ValueError as error:
                hint = "parametrization=mup builds a base model of that width; base_heads sets its number of heads"
                raise ValueError(f"base_width={self.base_width}: {error} ({hint})") from error
        multiplier = self.base_width / shape["d_model"]
        scalings: dict[str, MatrixScaling] = {}
        for name, module in model.named_modules():
            base_module: Any = (
                base.get_submodule(name) if isinstance(module, Attention | Linear | GroupedLinear) else None
            )
            if isinstance(module, Attention):
                if not hasattr(module, "scale"):
                    kind = type(module).__name__
                    raise ValueError(
                        f"base_width={self.base_width}: {kind} has no scale, which parametrization=mup has to set"
                    )
                # 1/√d becomes 1/√d · √d₀/√d = √d₀/d: proportional to 1/d, and unchanged at the base size d₀.
                module.scale *= module.scale / base_module.scale
            elif isinstance(module, Linear | GroupedLinear):
                is_head = name == "head"
                scaling = MatrixScaling(sides(module.weight), sides(base_module.weight), multiplier if is_head else 1.0)
                # The head is initialized like an embedding, because it may be tied to it; output_multiplier scales
                # its logits instead (Yang et al. 2022, table 8).
                module.std_factor = 1.0 if is_head else scaling.std_factor
                scalings[f"{name}.weight"] = scaling
        self._check(model, base, set(scalings))
        return ModelScaling(
            multiplier, {name: scaling for name, scaling in scalings.items() if scaling.shape != scaling.base_shape}
        )

    def _check(self, model: nn.Module, base: nn.Module, scaled: set[str]) -> None:
        """Refuse a growing matrix outside our linear layers, because its initialization would not be scaled."""
        tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        base_parameters = dict(base.named_parameters())
        for name, parameter in model.named_parameters():
            grows = parameter.ndim >= 2 and sides(parameter) != sides(base_parameters[name])
            if grows and name not in scaled | tables | stacked_vectors(model):
                raise ValueError(f"base_width={self.base_width}: {name} grows with the width outside a tinyllm Linear")


def stacked_vectors(model: nn.Module) -> set[str]:
    """Names of the parameters that are stacks of vectors, such as a bias per expert: no matrix, despite their shape.

    They are trained like any other vector, and muP leaves them unchanged.
    """
    named = list(model.named_modules())
    biases = {f"{name}.bias" for name, module in named if isinstance(module, GroupedLinear)}
    return biases | {f"{name}.taps_KC" for name, module in named if isinstance(module, ShortConv)}


def multipliers(model: Any) -> list[float]:
    """The factors applied in the forward pass: the output multiplier, then each block's attention scale."""
    return [model.output_multiplier, *(block.attn.scale for block in model.layers())]


def sides(weight: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix, or of each matrix in a stack."""
    return weight.shape[-2], weight.shape[-1]
