"""The documents within training windows: which token belongs to which, and how long they are."""

from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

from tinyllm.data.batch import WindowSource
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError

SAMPLED_WINDOWS = 256
"""Windows from whose documents average lengths are taken."""
BLOCK = 2**20


def document_ids(inputs_BT: Tensor, eot_id: int | None) -> Tensor | None:
    """(B, T): the number of each token's document within its row, from 0; None: the end of a document is unknown.

    The end-of-text token of one document is the first input of the next: what follows it is predicted from it alone,
    as generation from an empty prompt does. As a target it belongs to the document that it ends.
    """
    return None if eot_id is None else (inputs_BT == eot_id).cumsum(1)


def document_lengths(source: WindowSource, seq_len: int) -> Counter[int]:
    """How many documents of each length there are in the first windows of a source, cut to ``seq_len`` tokens."""
    n_windows = min(SAMPLED_WINDOWS, source.windows_per_epoch)
    batch = source.batch(np.arange(n_windows)).shortened(seq_len)
    if batch.doc_ids is None:
        return Counter({batch.inputs.shape[1]: batch.sequences})
    lengths: Counter[int] = Counter()
    for row in batch.doc_ids:
        lengths.update(row.unique_consecutive(return_counts=True)[1].tolist())
    return lengths


def check_documents(*splits: Any, key: str, value: Any) -> None:
    """Refuse a setting that needs several documents if splits of any kind have no borders between documents.

    Raises:
        UserError: each of them consists of rows, or does not say where documents end, or is one document.
    """
    refusals = [_refusal(split) for split in splits]
    if all(refusals):
        what, hint = refusals[0]
        raise UserError(what, key=key, value=value, hint=hint)


def _refusal(split: Any) -> tuple[str, ...]:
    """What is wrong with a split of no documents, and what to do; empty: nothing."""
    if not isinstance(split, Split):
        if (packing := getattr(split, "packing", None)) == "best_fit":
            return ()  # packed conversations, each a document
        pack = ", or set dataset.packing=best_fit" if packing else ""
        return "the data are rows, each a document of its own", f"leave it out{pack}"
    if split.row_length is not None:
        return "the data are rows, each a document of its own", "leave it out; windows never cross rows"
    if split.eot_id is None:
        hint = "leave it out, or use several documents and a tokenizer with that token"
        return "the data have no end-of-text token, so where a document ends is unknown", hint
    if split.shard_tokens is None and _is_one_document(split):  # not known while the data are being prepared
        return f"the {split.name} split is a single document", "leave it out, or use data of several documents"
    return ()


def _is_one_document(split: Split) -> bool:
    """Whether no end-of-text token has another token after it."""
    ids = split.ids[:-1]
    return not any((ids[first : first + BLOCK] == split.eot_id).any() for first in range(0, len(ids), BLOCK))
