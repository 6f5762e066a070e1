"""How the first weights, the learning rates and the multipliers of a model follow its width."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from tinyllm.nn.attention.base import Attention
from tinyllm.nn.grouped_linear import GroupedLinear
from tinyllm.nn.linear import Linear

Norm = Callable[[int, int], float]
"""Of an optimizer: the spectral norm of its step at learning rate 1, up to a constant, for a matrix of so many rows and
columns."""


@dataclass(frozen=True)
class MatrixScaling:
    """The shape of a matrix, rows (fan-out) and columns (fan-in), and its shape at the base width.

    A side grows with the width if it differs from the base shape's. A layer's output, and its change per step, keep
    their size if the spectral norms of the weight matrix and of its update are proportional to √(rows/columns)
    (Yang, Simon & Bernstein 2023, https://arxiv.org/abs/2310.17813, condition 1).

    Attributes:
        multiplier: what the output is multiplied with here, over what it is there.
    """

    shape: tuple[int, int]
    base_shape: tuple[int, int]
    multiplier: float = 1.0

    @property
    def std_factor(self) -> float:
        """Of the initial standard deviation: 1/√fan_in where both sides grow, and 1/fan_in where only that one does.

        Relative to the base shape; Yang et al. 2022, table 3.
        """
        (rows, columns), (base_rows, base_columns) = self.shape, self.base_shape
        fan_in = columns / base_columns
        return 1 / fan_in if rows == base_rows else fan_in**-0.5

    def rate_factor(self, norm: Norm) -> float:
        """Learning rate relative to the base shape: 1/fan_in for steps whose entries have one size, as Adam's."""
        here, there = ((rows / columns) ** 0.5 / norm(rows, columns) for rows, columns in (self.shape, self.base_shape))
        return here / there / self.multiplier


class ModelScaling(NamedTuple):
    """What a parametrization gives a model.

    Attributes:
        output_multiplier: factor on the hidden states that the head reads, and so on the logits.
        scalings: of the matrices whose learning rates differ from those at the base width, by the parameter's name.
    """

    output_multiplier: float
    scalings: dict[str, MatrixScaling]


class Parametrization(ABC):
    """The interface."""

    @abstractmethod
    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        """Set the factors of a model's parts that are 1 where nothing follows the width.

        Args:
            model: its weights are not drawn yet.
            build: makes the same model of another shape, with ``Standard``.
            shape: ``d_model``, ``n_heads``, ``n_kv_heads`` and ``d_ff``.

        Raises:
            ValueError: the model cannot follow its width.
        """


class Standard(Parametrization):
    """Nothing follows the width."""

    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        return ModelScaling(1.0, {})


class MuP(Parametrization):
    """Maximal update parametrization (Yang et al. 2022, https://arxiv.org/abs/2203.03466, tables 3 and 8).

    The model is compared with its base model: the same composition, ``base_width`` wide. Sizes that a part was given
    (``head_dim``, ``kv_latent_dim``, a ``d_ff`` of its own) are the same there; those that follow from the model's
    shape follow from the base's. Where a side of a matrix differs between the two, it grows with the width:

    - a matrix starts with 1/√fan_in, or with 1/fan_in if its fan-out does not grow (a router, a latent of fixed size);
    - its learning rate is such that a step changes its output as much as at the base width;
    - attention's scale is 1/d instead of 1/√d, equal at the base's size of heads;
    - logits are multiplied with base_width/d_model; the head starts and learns as embeddings do, so it may be one;
    - embeddings, positions, gains and biases are as they are.

    At the base width every factor is 1.

    Args:
        base_width: the base model's d_model.
        base_heads: its number of query heads, of which each has the same share of keys and values as here; None: as
            many as here.

    Raises:
        ValueError: a number out of range.
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
        shared = (k for k in range(1, heads + 1) if heads % k == 0 and k * n_heads <= n_kv_heads * heads)
        return {
            "d_model": self.base_width,
            "n_heads": heads,
            "n_kv_heads": max(shared, default=1),
            "d_ff": max(1, round(d_ff * self.base_width / d_model)),
        }

    def apply(self, model: nn.Module, build: Callable[..., nn.Module], *, shape: dict[str, int]) -> ModelScaling:
        with torch.device("meta"):
            try:
                base = build(**self.base_shape(**shape))
            except ValueError as error:
                hint = "parametrization=mup compares with a model of that width; base_heads says how many heads it has"
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
                    raise ValueError(f"base_width={self.base_width}: {kind} has no scale that could follow its heads")
                module.scale *= module.scale / base_module.scale
            elif isinstance(module, Linear | GroupedLinear):
                is_head = name == "head"
                scaling = MatrixScaling(sides(module.weight), sides(base_module.weight), multiplier if is_head else 1.0)
                module.std_factor = 1.0 if is_head else scaling.std_factor
                scalings[f"{name}.weight"] = scaling
        self._check(model, base, set(scalings))
        return ModelScaling(
            multiplier, {name: scaling for name, scaling in scalings.items() if scaling.shape != scaling.base_shape}
        )

    def _check(self, model: nn.Module, base: nn.Module, known: set[str]) -> None:
        """Refuse a matrix that grows and that no linear layer holds: nothing here sets how it starts."""
        tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        base_parameters = dict(base.named_parameters())
        for name, parameter in model.named_parameters():
            grows = parameter.ndim >= 2 and sides(parameter) != sides(base_parameters[name])
            if grows and name not in known | tables and not name.endswith(".bias"):
                raise ValueError(f"base_width={self.base_width}: {name} grows, and no Linear of tinyllm holds it")


def multipliers(model: Any) -> list[float]:
    """The factors that a model reads its weights with: that on the logits, and the scale of each block's attention."""
    return [model.output_multiplier, *(block.attn.scale for block in model.layers())]


def sides(weight: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix, or of each in a stack."""
    return weight.shape[-2], weight.shape[-1]
