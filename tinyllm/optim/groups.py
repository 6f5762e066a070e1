"""Parameter groups: which tensors get weight decay, and which have a learning rate of their own."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

MATRIX = "matrix"
KINDS = (MATRIX, "head", "embedding", "vector")
"""The matrix of a linear layer; that of an output head that is no embedding table; a look-up table; anything else."""
DECAYED = KINDS[:2]


def parameter_groups(
    model: nn.Module, kinds: Mapping[str, str], scalings: Mapping[str, Hashable] | None = None
) -> list[dict[str, Any]]:
    """One optimizer group per kind of parameter, in the order of ``KINDS``; only matrices and the head are decayed.

    Parameters that grow with the width of the model are in groups of their own, one for each scaling.

    Args:
        model: its parameters, each once (a tied tensor under its first name).
        kinds: one of ``KINDS`` by parameter name, from ``model.parameter_kinds()``.
        scalings: of some of the parameters, by name, see :func:`scale_with_width`.

    Returns:
        Groups with ``params``, ``names``, ``kind`` and ``scaling``; those without decay set ``weight_decay`` to 0.

    Raises:
        ValueError: a parameter has no kind, a kind is unknown, or no parameter is a matrix.
    """
    found: dict[tuple[str, Hashable], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        kind, own = kinds.get(name), (scalings or {}).get(name)
        if kind not in KINDS:
            raise ValueError(f"parameter {name} has kind {kind}: one of {', '.join(KINDS)}")
        group = found.setdefault((kind, own), {"params": [], "names": [], "kind": kind, "scaling": own})
        if kind not in DECAYED:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
        group["names"].append(name)
    if all(kind not in DECAYED for kind, _ in found):
        raise ValueError("weight decay would apply to nothing: the model has no matrix of a linear layer")
    return sorted(found.values(), key=lambda group: KINDS.index(group["kind"]))


def scale_with_width(optimizer: Optimizer) -> None:
    """Let the learning rates of the groups that grow with the width of the model follow it.

    The decay of a step is lr·weight_decay; it stays as it is at every width, so that the weights forget in the same
    number of steps (Wang & Aitchison 2024, https://arxiv.org/abs/2405.13698, §4).

    Args:
        optimizer: its ``update_norm(rows, columns)`` is the spectral norm of a matrix's step at learning rate 1, up to
            a constant; one that has none makes steps whose entries have one size, and so does every one for the groups
            that name ``entrywise``.
    """
    norm = getattr(optimizer, "update_norm", entrywise_norm)
    for group in optimizer.param_groups:
        if group["scaling"] is not None:
            factor = group["scaling"].rate_factor(entrywise_norm if group.get("entrywise") else norm)
            group["lr_scale"] = group.get("lr_scale", 1.0) * factor
            group["weight_decay"] /= factor


def entrywise_norm(rows: int, columns: int) -> float:
    """The spectral norm of a step in few directions whose entries are all about 1."""
    return float((rows * columns) ** 0.5)
