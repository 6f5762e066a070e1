"""From a model of ours to one of transformers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tinyllm.interop.architecture import architecture_of
from tinyllm.interop.families import fitting
from tinyllm.interop.folding import folded
from tinyllm.models.transformer import Transformer


def converted(model: Transformer, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The family's name, config.json and transformers' tensors by name.

    Args:
        model: the model, for what it is; meta tensors suffice.
        state: its tensors by our names, in any dtype.

    Raises:
        UserError: no family expresses it.
    """
    arch = architecture_of(model)
    family = fitting(arch)
    config = family.write(arch)
    state = folded(model, state)
    tensors: dict[str, Tensor] = {}
    for one in family.weights(arch, config):
        tensors |= zip(one.theirs, one.layout.split(state[one.ours]), strict=True)
    return family.title, config, tensors
