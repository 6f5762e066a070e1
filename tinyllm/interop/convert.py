"""Conversion of a tinyllm model to transformers: config.json and the weights by their names there."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tinyllm.interop.architecture import architecture_of
from tinyllm.interop.families import family_for
from tinyllm.models.score_head import SCORE
from tinyllm.models.transformer import Transformer
from tinyllm.nn.attention.mha import MHA
from tinyllm.nn.attention.mla import MLA


def convert(model: Transformer, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The family's title, the content of config.json, and the tensors by transformers' names.

    Args:
        model: the model; on the meta device it suffices.
        state: its state dict, in any dtype.

    Raises:
        UserError: no family can represent the architecture.
    """
    arch = architecture_of(model)
    family = family_for(arch)
    config = family.write(arch)
    state = fold_multipliers(model, state)
    tensors: dict[str, Tensor] = {}
    for weight in family.weights(arch, config):
        tensors |= zip(weight.hf_names, weight.layout.split(state[weight.name]), strict=True)
    if model.score is not None:
        config |= {"architectures": [family.classifier], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        tensors[SCORE] = state[SCORE]
    return family.title, config, tensors


def fold_multipliers(model: Transformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the multipliers of a parametrization (muP) into the weights, as transformers' models have none.

    The result computes the same function with an output multiplier of 1 and attention scores scaled by 1/√head_dim.
    The output multiplier goes into the last norm, whose output only the head reads. The ratio of attention's scale to
    1/√head_dim goes into the queries; the score factor of YaRN stays out of it, because transformers applies that
    itself. Tensors without a factor are returned as they are.

    Args:
        model: holds the multipliers; on the meta device it suffices.
        state: its state dict, in any dtype.
    """
    factors: dict[str, tuple[slice, float]] = {}
    if model.output_multiplier != 1:
        factors |= {f"norm.{name}": (slice(None), model.output_multiplier) for name, _ in model.norm.named_parameters()}
    for i, block in enumerate(model.layers()):
        names, rows, head_dim = _queries(block.attn)
        standard = head_dim**-0.5 * (model.pos.score_factor if isinstance(block.attn, MLA) else 1.0)
        if (factor := block.attn.scale / standard) != 1:
            factors |= {f"blocks.{i}.attn.{name}": (rows, factor) for name in names}
    folded = dict(state)
    for name in factors.keys() & state.keys():
        rows, factor = factors[name]
        folded[name] = state[name].clone()
        folded[name][rows] *= factor
    return folded


def _queries(attn: object) -> tuple[list[str], slice, int]:
    """The tensors that scale the queries, the rows of them that do, and the head dimension of the scores."""
    if isinstance(attn, MLA):
        last = "q_up" if attn.compresses_q else "q"
        return [f"{last}.weight", f"{last}.bias"], slice(None), attn.nope_dim + attn.rope_dim
    assert isinstance(attn, MHA)
    if attn.q_norm is not None:
        return ["q_norm.weight"], slice(None), attn.head_dim
    return ["qkv.weight", "qkv.bias"], slice(attn.n_heads * attn.head_dim), attn.head_dim
