"""FLOPs of a token where attention stays within documents: an average over documents of the data."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tinyllm.data.batch import WindowSource
from tinyllm.data.documents import document_lengths


def training_flops(model: Any, source: WindowSource | None) -> Callable[[int], int]:
    """FLOPs per token of forward and backward pass, by sequence length.

    Without ``document_mask``, or without data, these are the model's own, with every token attending to the whole
    sequence. With it, each document counts as a sequence of its own length, in the first windows of the source.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        source: the training data; None: not known.
    """
    if source is None or not model.document_mask:
        return cache(model.training_flops_per_token)

    @cache
    def average(seq_len: int) -> int:
        lengths = document_lengths(source, seq_len)
        total = sum(count * length * model.training_flops_per_token(length) for length, count in lengths.items())
        return round(total / sum(count * length for length, count in lengths.items()))

    return average
