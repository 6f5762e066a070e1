"""The activation functions by the names that ``ffn.activation`` and ``ffn.gate`` accept."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """The function called ``name``; a ValueError that lists the names of ``table`` if there is none."""
    if name not in table:
        raise ValueError(f"{parameter}={name} is not known: choose one of {' '.join(table)}")
    return table[name]
