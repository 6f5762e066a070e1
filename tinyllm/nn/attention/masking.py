"""Which keys a query attends to."""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SOFTCAP = 1e-6
"""Scores are divided by the softcap; below this, 0 / softcap is NaN in fp16, where the softcap rounds to 0."""


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """Window, sinks and softcap of causal attention.

    Attributes:
        window: W: query i sees keys i−W+1 … i; 0: all keys up to i.
        sinks: number of first positions that every query sees besides its window (Xiao et al. 2023); needs a window.
            Models put attention there that no other key should get; without these keys, quality collapses.
        softcap: scores become softcap·tanh(score/softcap) (Gemma Team 2024); 0: off.

    Raises:
        ValueError: a number out of range.
    """

    window: int = 0
    sinks: int = 0
    softcap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window", "sinks", "softcap"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be at least 0 and finite; 0 turns it off")
        if 0 < self.softcap < MIN_SOFTCAP:
            raise ValueError(
                f"softcap={self.softcap} is too small: it must be at least {MIN_SOFTCAP:g}; 0 turns it off"
            )
        if self.sinks and not self.window:
            raise ValueError(
                f"sinks={self.sinks} needs a window: without one, every query sees the first positions anyway"
            )

    def keys_seen(self, context: int) -> int:
        """Number of keys that the last of ``context`` positions sees."""
        return min(context, self.window + self.sinks) if self.window else context

    def window_within(self, context: int) -> int:
        """The window; 0 where ``context`` is so short that every query sees all positions before it."""
        return self.window if context > self.window + self.sinks else 0

    def within_documents(self, doc_ids_BT: Tensor) -> Tensor:
        """(B, 1, T, T): the keys that each query sees in rows that hold several documents.

        Window and sinks count within a document, as if each stood alone.
        """
        T = doc_ids_BT.shape[1]
        keys_T = torch.arange(T, device=doc_ids_BT.device)
        queries_T1, first_BT1 = keys_T[:, None], document_starts(doc_ids_BT)[..., None]
        # Documents are contiguous, so a query's own document is everything from its first token on.
        visible_BTS = (keys_T <= queries_T1) & (keys_T >= first_BT1)
        if self.window:
            visible_BTS &= (keys_T > queries_T1 - self.window) | (keys_T < first_BT1 + self.sinks)
        return visible_BTS[:, None]


def document_starts(doc_ids_BT: Tensor) -> Tensor:
    """(B, T): the index at which the document of each token begins; a document is a run of equal ids."""
    index_T = torch.arange(doc_ids_BT.shape[1], device=doc_ids_BT.device)
    begins_BT = torch.ones_like(doc_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1]
    return (index_T * begins_BT).cummax(1).values


def document_positions(doc_ids_BT: Tensor) -> Tensor:
    """(B, T): the position of each token in its document, from 0."""
    return torch.arange(doc_ids_BT.shape[1], device=doc_ids_BT.device) - document_starts(doc_ids_BT)
