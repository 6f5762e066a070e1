"""From a model of ours to one of transformers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tinyllm.interop.architecture import architecture_of
from tinyllm.interop.families import fitting
from tinyllm.models.transformer import Transformer
from tinyllm.nn.attention.mha import MHA
from tinyllm.nn.attention.mla import MLA


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


def folded(model: Transformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the same function without an output multiplier, and with 1/√d as attention's scale.

    The output multiplier goes into the last norm, which the head alone reads; what attention's scale differs by, into
    the queries, without what the positions ask for. Nothing changes where there is nothing to fold.

    Args:
        model: for its multipliers; meta tensors suffice.
        state: its tensors, in any dtype.
    """
    factors: dict[str, tuple[slice, float]] = {}
    if model.output_multiplier != 1:
        factors |= {f"norm.{name}": (slice(None), model.output_multiplier) for name, _ in model.norm.named_parameters()}
    for i, block in enumerate(model.layers()):
        names, rows, size = _queries(block.attn)
        usual = size**-0.5 * (model.pos.score_factor if isinstance(block.attn, MLA) else 1.0)
        if (factor := block.attn.scale / usual) != 1:
            factors |= {f"blocks.{i}.attn.{name}": (rows, factor) for name in names}
    found = dict(state)
    for name in factors.keys() & found.keys():
        rows, factor = factors[name]
        found[name] = state[name].clone()
        found[name][rows] *= factor
    return found


def _queries(attn: object) -> tuple[list[str], slice, int]:
    """What a factor on the queries goes into: tensors of the layer, and which of their rows; and the size of a head."""
    if isinstance(attn, MLA):
        last = "q_up" if attn.compresses_q else "q"
        return [f"{last}.weight", f"{last}.bias"], slice(None), attn.nope_dim + attn.rope_dim
    assert isinstance(attn, MHA)
    if attn.q_norm is not None:
        return ["q_norm.weight"], slice(None), attn.head_dim
    return ["qkv.weight", "qkv.bias"], slice(attn.n_heads * attn.head_dim), attn.head_dim
