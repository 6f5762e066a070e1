"""Attention within documents, where a row of the batch holds several.

Each document is attended to by itself, by the kernel that is fastest at its length; short neighbors share a call with a
small mask. Scores between documents are never computed beyond these small groups, and no mask of all queries and keys
exists: time and memory are those of the documents, whatever the length of the row.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 128
"""Most tokens of short documents that share a call: more would compute more scores that the mask discards, fewer would
make more calls (experiments/LOG.md)."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of (n, H, L, D) queries to as many keys and values, with the documents (n, L) of the tokens where a group
holds several."""


class Group(NamedTuple):
    """Consecutive tokens of one row, computed together."""

    length: int
    documents: int


def by_document(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTE: Tensor, doc_ids_BT: Tensor, attend: Attend) -> Tensor:
    """Causal attention of each document to itself: (B, H, T, E).

    Groups of equal length become one batch. The lengths are needed on the host: on a GPU this waits for the device.

    Args:
        q_BHTD: queries.
        k_BGTD, v_BGTE: keys and values of the same tokens.
        doc_ids_BT: document of each token; a document is a run of equal ids within a row.
        attend: computes one batch of groups.
    """
    B, _, T, _ = q_BHTD.shape
    rows = document_lengths(doc_ids_BT)
    if len(rows) == sum(map(len, rows)):  # every row is one document: nothing to cut
        return attend(q_BHTD, k_BGTD, v_BGTE, None)
    groups = list(groups_of(rows))
    batches: dict[tuple[int, bool], list[int]] = {}
    for number, group in enumerate(groups):
        batches.setdefault((group.length, group.documents > 1), []).append(number)
    lengths = [group.length for group in groups]
    # Split once and concatenated once: the gradient of a slice would be as large as what it was cut from.
    q, k, v = (x.transpose(1, 2).flatten(0, 1).split(lengths) for x in (q_BHTD, k_BGTD, v_BGTE))
    ids = doc_ids_BT.flatten().split(lengths)
    outputs: dict[int, Tensor] = {}
    for (_, several), numbers in batches.items():
        q_nHLD, k_nGLD, v_nGLE = (torch.stack([x[i] for i in numbers]).transpose(1, 2) for x in (q, k, v))
        out_nHLE = attend(q_nHLD, k_nGLD, v_nGLE, torch.stack([ids[i] for i in numbers]) if several else None)
        outputs |= zip(numbers, out_nHLE.transpose(1, 2).unbind(), strict=True)
    return torch.cat([outputs[i] for i in range(len(groups))]).unflatten(0, (B, T)).transpose(1, 2)


def document_lengths(doc_ids_BT: Tensor) -> list[list[int]]:
    """The lengths of the documents in each row, in order."""
    B, T = doc_ids_BT.shape
    begins_BT = torch.ones_like(doc_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1]
    starts = begins_BT.flatten().nonzero().flatten()
    lengths = starts.diff(append=starts.new_tensor([B * T])).tolist()
    per_row, at = begins_BT.sum(1).tolist(), 0
    rows = []
    for count in per_row:
        rows.append(lengths[at : at + count])
        at += count
    return rows


def groups_of(rows: list[list[int]]) -> Iterator[Group]:
    """Documents, merged within their row while no more than ``GROUP`` tokens share a call."""
    for lengths in rows:
        size, documents = 0, 0
        for length in lengths:
            if documents and size + length > GROUP:
                yield Group(size, documents)
                size, documents = 0, 0
            size, documents = size + length, documents + 1
        yield Group(size, documents)
