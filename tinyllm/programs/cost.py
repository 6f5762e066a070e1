"""What a composition costs, by its modules' own accounting; nothing takes memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyllm.config.targets import Option


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a composition costs, by its modules' own accounting."""

    parameters: int
    active_parameters: int
    """Those that one token passes through."""
    flops_per_token: int
    """Of training at the training context: three times the forward pass."""
    decode_flops_per_token: int
    """Of the last token of a full context."""
    kv_bytes_per_token: int
    """Of the cache in bf16, for one position of one sequence."""


if TYPE_CHECKING:
    from omegaconf import DictConfig

Allow = frozenset[Option]


def account(cfg: "DictConfig", *, vocab_size: int, allow: Allow = frozenset()) -> Account:
    """The account of a composed configuration of training.

    Args:
        vocab_size: of the tokenizer; ``model.vocab_size`` wins where it is given.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: sizes that do not go together.
    """
    from tinyllm.programs.builders import plain

    return of_node(plain(cfg.model), vocab_size=vocab_size, seq_len=cfg.trainer.seq_len, allow=allow)


def of_node(node: dict[str, Any], *, vocab_size: int, seq_len: int | None, allow: Allow = frozenset()) -> Account:
    """The account of the node ``model`` of a configuration, as plain containers.

    Args:
        seq_len: the training context; None: the model's.

    Raises:
        UserError: sizes that do not go together.
    """
    import torch

    from tinyllm.config.build import build

    with torch.device("meta"):
        model = build(node, path="model", allow=allow, vocab_size=node["vocab_size"] or vocab_size)
    return of_model(model, seq_len=seq_len or model.max_seq_len)


def of_model(model: Any, *, seq_len: int) -> Account:
    """The account of a model that is trained on contexts of ``seq_len`` tokens."""
    import torch

    counts = model.parameter_counts()
    return Account(
        parameters=counts.total,
        active_parameters=counts.active,
        flops_per_token=3 * model.flops_per_token(seq_len),
        decode_flops_per_token=model.decode_flops_per_token(model.max_seq_len),
        kv_bytes_per_token=model.cache_bytes_per_token(torch.bfloat16),
    )


def vocabulary(cfg: "DictConfig", *, allow: Allow = frozenset()) -> tuple[int, list[str]]:
    """The size of the vocabulary as far as it is known without reading data, and a sentence if it is assumed."""
    from tinyllm.data.prepare import cached
    from tinyllm.errors import UserError
    from tinyllm.programs.builders import PLACEHOLDER_VOCAB, open_corpus

    known = cfg.model.vocab_size or cfg.tokenizer.get("vocab_size")
    if known is not None:
        return int(known), []
    try:
        data = cached(*open_corpus(cfg, allow=allow))
    except UserError:
        data = None
    if data is not None:
        return data.tokenizer.vocab_size, []
    note = f"a vocabulary of {PLACEHOLDER_VOCAB} is assumed: the data is not in the cache, prepare puts it there"
    return PLACEHOLDER_VOCAB, [note]
