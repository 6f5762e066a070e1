"""Parameter groups: which tensors get weight decay."""

from collections.abc import Mapping
from typing import Any

from torch import nn

DECAYED = "matrix"
KINDS = (DECAYED, "embedding", "vector")


def parameter_groups(model: nn.Module, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """One optimizer group per kind of parameter, in the order of ``KINDS``; only matrices are decayed.

    Args:
        model: its parameters, each once (a tied tensor under its first name).
        kinds: ``matrix``, ``embedding`` or ``vector`` by parameter name, from ``model.parameter_kinds()``.

    Returns:
        Groups with ``params``, ``names`` and ``kind``; all but the matrices' set ``weight_decay`` to 0.

    Raises:
        ValueError: a parameter has no kind, a kind is unknown, or no parameter is a matrix.
    """
    groups: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        groups[kind] = {"params": [], "names": [], "kind": kind}
        if kind != DECAYED:
            groups[kind]["weight_decay"] = 0.0
    for name, parameter in model.named_parameters():
        if kinds.get(name) not in groups:
            raise ValueError(f"parameter {name} has kind {kinds.get(name)}: one of {', '.join(KINDS)}")
        group = groups[kinds[name]]
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups[DECAYED]["params"]:
        raise ValueError("weight decay would apply to nothing: the model has no matrix of a linear layer")
    return [group for group in groups.values() if group["params"]]
