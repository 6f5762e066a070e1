"""The cost of a composition, counted by the modules of its model on ``meta``, which takes no memory."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.targets import Option
from tinyllm.data.batch import WindowSource
from tinyllm.data.run_data import cached_run_data
from tinyllm.errors import UserError
from tinyllm.programs.builders import META, PLACEHOLDER_VOCAB, attach_adapters, open_corpus, plain
from tinyllm.training.flops import training_flops

Allow = frozenset[Option]


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The cost of a model: parameters, FLOPs and cache."""

    parameters: int
    active_parameters: int
    """Parameters that one token passes through."""
    flops_per_token: int
    """Training FLOPs of a token at the training context: forward and backward pass."""
    decode_flops_per_token: int
    """FLOPs of the last token of a full context, with a cache."""
    kv_bytes_per_token: int
    """Cache bytes of one position of one sequence, in bf16."""


def model_cost(
    cfg: DictConfig, *, vocab_size: int, source: WindowSource | None = None, allow: Allow = frozenset()
) -> ModelCost:
    """The cost of a composed training configuration.

    Args:
        vocab_size: the tokenizer's; ``model.vocab_size`` wins where it is set.
        source: the training data, see ``cost_of_model``.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: sizes that do not fit together.
    """
    seq_len, lora = cfg.trainer.seq_len, plain(cfg.lora)
    return cost_of_node(plain(cfg.model), vocab_size=vocab_size, seq_len=seq_len, source=source, lora=lora, allow=allow)


def cost_of_node(
    node: dict[str, Any],
    *,
    vocab_size: int,
    seq_len: int | None,
    source: WindowSource | None = None,
    lora: dict[str, Any] | None = None,
    allow: Allow = frozenset(),
) -> ModelCost:
    """The cost of the node ``model`` of a configuration, given as plain containers.

    Args:
        seq_len: the training context; None: the model's.
        source: the training data, see ``cost_of_model``.
        lora: the node of adapters. They cost training FLOPs; all other figures are those of the merged model.

    Raises:
        UserError: sizes that do not fit together.
    """
    with META:
        model = build(node, path="model", allow=allow, vocab_size=node["vocab_size"] or vocab_size)
        seq_len = seq_len or model.max_seq_len
        cost = cost_of_model(model, seq_len=seq_len, source=source)
        if not lora:
            return cost
        attach_adapters(lora, model, seed=0, allow=allow)
    return replace(cost, flops_per_token=training_flops(model, source)(seq_len))


def cost_of_model(model: Any, *, seq_len: int, source: WindowSource | None = None) -> ModelCost:
    """The cost of a model trained on contexts of ``seq_len`` tokens.

    Args:
        source: the training data: with ``document_mask``, FLOPs are an average over their documents. None: they are
            those of documents that fill the context.
    """
    counts = model.parameter_counts()
    return ModelCost(
        parameters=counts.total,
        active_parameters=counts.active,
        flops_per_token=training_flops(model, source)(seq_len),
        decode_flops_per_token=model.decode_flops_per_token(model.max_seq_len),
        kv_bytes_per_token=model.cache_bytes_per_token(torch.bfloat16),
    )


def vocabulary(cfg: DictConfig, *, allow: Allow = frozenset()) -> tuple[int, list[str]]:
    """The vocabulary size as known without preparing data, and a note if it is a placeholder."""
    known = cfg.model.vocab_size or cfg.tokenizer.get("vocab_size")
    if known is not None:
        return int(known), []
    try:
        data = cached_run_data(*open_corpus(cfg, allow=allow))
    except UserError:
        data = None
    if data is not None:
        return data.tokenizer.vocab_size, []
    note = f"a vocabulary of {PLACEHOLDER_VOCAB} is assumed: the data is not in the token cache (prepare adds it)"
    return PLACEHOLDER_VOCAB, [note]
