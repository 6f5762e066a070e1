"""Parameter groups: which parameters get weight decay, and which have their own learning rate."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

MATRIX = "matrix"
KINDS = (MATRIX, "head", "embedding", "vector")
"""Matrix of a linear layer, matrix of an untied head, look-up table, anything else."""
DECAYED = KINDS[:2]
"""Gains and biases are not decayed: they set scales, which decay would pull to 0. Nor are tables: only the rows of a
batch's tokens get gradients, but decay would shrink every row."""


def parameter_groups(
    model: nn.Module, kinds: Mapping[str, str], scalings: Mapping[str, Hashable] | None = None
) -> list[dict[str, Any]]:
    """One optimizer group per kind of parameter, in the order of ``KINDS``; only matrices and the head are decayed.

    Under a parametrization, each distinct scaling of a kind has its own group.

    Args:
        model: each parameter counts once, a tied tensor under its first name; frozen ones are left out.
        kinds: kind by parameter name, from ``model.parameter_kinds()``.
        scalings: scaling by parameter name (``MatrixScaling``), for those whose learning rate depends on the width.

    Returns:
        Groups with ``params``, ``names``, ``kind`` and ``scaling``; groups without decay set ``weight_decay`` to 0.

    Raises:
        ValueError: a parameter has no kind, a kind is unknown, or no parameter is a matrix.
    """
    groups: dict[tuple[str, Hashable], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, scaling = kinds.get(name), (scalings or {}).get(name)
        if kind not in KINDS:
            raise ValueError(f"parameter {name} has kind {kind}: it must be one of {', '.join(KINDS)}")
        group = groups.setdefault((kind, scaling), {"params": [], "names": [], "kind": kind, "scaling": scaling})
        if kind not in DECAYED:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
        group["names"].append(name)
    if all(kind not in DECAYED for kind, _ in groups):
        raise ValueError("weight decay would apply to nothing: the model has no linear layer")
    # A fixed order, in which the trainer sums the norm of the gradients.
    return sorted(groups.values(), key=lambda group: KINDS.index(group["kind"]))


def scale_with_width(optimizer: Optimizer) -> None:
    """Scale the learning rates of the groups that have a ``scaling``.

    lr·weight_decay, the decay per step, is kept constant over widths, so that weights decay on the same time scale
    (Wang & Aitchison 2024, https://arxiv.org/abs/2405.13698, §4).

    Args:
        optimizer: its ``update_norm(rows, columns)`` is the spectral norm of a matrix's step at learning rate 1, up to
            a constant. Without it, and for groups marked ``entrywise``, :func:`entrywise_norm` is used.
    """
    norm = getattr(optimizer, "update_norm", entrywise_norm)
    for group in optimizer.param_groups:
        if group["scaling"] is not None:
            factor = group["scaling"].rate_factor(entrywise_norm if group.get("entrywise") else norm)
            group["lr_scale"] = group.get("lr_scale", 1.0) * factor
            group["weight_decay"] /= factor


def entrywise_norm(rows: int, columns: int) -> float:
    """Spectral norm of a low-rank step whose entries are all about 1, as Adam's and Lion's are."""
    return float((rows * columns) ** 0.5)
