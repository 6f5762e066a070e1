"""What a token was chosen from: its probability, the alternatives, and which filter excluded them.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm.inference.sampling import Sampling, TokenChooser

FILTERS = ("top_k", "top_p", "min_p")
"""In the order in which :class:`Sampling` applies them."""
UNKNOWN, GREEDY = "unknown token", "temperature=0"
"""What excludes a token besides the filters: it stands for text outside the vocabulary; only the likeliest is taken."""


class Candidate(NamedTuple):
    """A token that might have been chosen."""

    token: int
    probability: float
    """Under the model itself: before repetition penalty, temperature and filters."""
    drawn: float
    """With which it is drawn, after all of them; 0 if it is excluded."""
    excluded_by: str
    """The filter that excluded it (``top_k``, ``top_p``, ``min_p``), another reason, or "" if it may be drawn."""


class Choice(NamedTuple):
    """A token of a text and the most likely alternatives, the best first; the token itself may be one of them."""

    chosen: Candidate
    top: list[Candidate]


class ExplainingChooser(TokenChooser):
    """A :class:`TokenChooser` that also records what each token was chosen from; it chooses the same tokens.

    Args:
        n_top: how many of the most likely tokens to report, at most.
        settings: see :class:`TokenChooser`.

    Attributes:
        choices: one per row, of the newest call of :meth:`choose`.
    """

    def __init__(self, sampling: Sampling, *, n_top: int, **settings: Any) -> None:
        super().__init__(sampling, **settings)
        self.n_top = n_top
        self.choices: list[Choice] = []

    def choose(self, logits_BV: Tensor) -> Tensor:
        """See :meth:`TokenChooser.choose`."""
        logits_BV = logits_BV[:, : self.vocab_size].float()
        penalized_BV = self.sampling.penalize(logits_BV, self.seen_BV)  # before the new tokens are marked as seen
        ids_B = super().choose(logits_BV)
        reasons, drawn_BV = _drawn(self.sampling, penalized_BV, unk_id=self.unk_id)
        probabilities_BV = logits_BV.softmax(dim=-1)
        self.choices = [
            _choice(
                token,
                probabilities_BV[row],
                drawn_BV[row],
                {name: excluded_BV[row] for name, excluded_BV in reasons.items()},
                n_top=self.n_top,
            )
            for row, token in enumerate(ids_B.tolist())
        ]
        return ids_B


def _drawn(sampling: Sampling, logits_BV: Tensor, *, unk_id: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """What excludes which tokens (bool masks (B, V) by reason, each token in one), and the probabilities (B, V)."""
    reasons: dict[str, Tensor] = {}
    if unk_id is not None:
        reasons[UNKNOWN] = torch.zeros_like(logits_BV, dtype=torch.bool)
        reasons[UNKNOWN][:, unk_id] = True
        logits_BV = logits_BV.masked_fill(reasons[UNKNOWN], -math.inf)
    if sampling.temperature == 0:
        best_B1 = logits_BV.max(dim=-1, keepdim=True).indices
        drawn_BV = torch.zeros_like(logits_BV).scatter_(-1, best_B1, 1.0)
        reasons[GREEDY] = (drawn_BV == 0) & logits_BV.isfinite()
        return reasons, drawn_BV
    before_BV = logits_BV
    for count, name in enumerate(FILTERS, start=1):
        if getattr(sampling, name) is not None:
            off: dict[str, Any] = dict.fromkeys(FILTERS[count:])
            after_BV = replace(sampling, **off).filter(logits_BV)
            reasons[name] = before_BV.isfinite() & ~after_BV.isfinite()
            before_BV = after_BV
    return reasons, sampling.filter(logits_BV).softmax(dim=-1)


def _choice(token: int, probabilities_V: Tensor, drawn_V: Tensor, reasons: dict[str, Tensor], *, n_top: int) -> Choice:
    top = probabilities_V.topk(min(n_top, len(probabilities_V))).indices.tolist()

    def candidate(token: int) -> Candidate:
        excluded_by = next((name for name, excluded_V in reasons.items() if excluded_V[token]), "")
        return Candidate(token, float(probabilities_V[token]), float(drawn_V[token]), excluded_by)

    return Choice(candidate(token), [candidate(each) for each in top])


def chooser_of(sampling: Sampling, *, n_top: int, **settings: Any) -> TokenChooser:
    """A chooser that explains its choices, or with ``n_top=0`` one that does not."""
    return ExplainingChooser(sampling, n_top=n_top, **settings) if n_top else TokenChooser(sampling, **settings)


def choices_of(chooser: TokenChooser) -> Sequence[Choice | None]:
    """The choices of the newest step, one per row; None for each if the chooser does not explain them."""
    return chooser.choices if isinstance(chooser, ExplainingChooser) else [None] * len(chooser.generators)
