"""The scalar head of a reward model, in place of the head over the vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn

from tinyllm.nn.linear import Linear

SCORE, HEAD = "score.weight", "head.weight"
"""Names of the matrix of this head, and of an untied head over the vocabulary."""


class ScoreHead(Linear):
    """One number per hidden state: d_model → 1, without bias, which no comparison of two answers would see.

    It starts at zeros: all answers have the score 0, and the first loss is ln 2 whatever the seed. A random start would
    rank answers at random, and its gradient would move the trained weights below it towards that ranking.
    """

    def __init__(self, *, d_model: int) -> None:
        super().__init__(d_in=d_model, d_out=1, bias=False)

    def init_weights(self, std: float) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, hidden_NC: Tensor) -> Tensor:
        """The scores (N,) of hidden states, in fp32 also under autocast: their differences are small."""
        return (hidden_NC.float() * self.weight.float()).sum(-1)


def drop_head(model: Any) -> None:
    """Remove the head over the vocabulary of a :class:`tinyllm.models.transformer.Transformer`, if it has its own."""
    model.head = None
    model.matrix_scalings.pop(HEAD, None)


def attach_score_head(model: Any) -> None:
    """Give a model a score head of zeros. It trains, also where adapters have frozen all other weights."""
    with torch.device("meta" if model.device.type == "meta" else "cpu"):
        model.score = ScoreHead(d_model=model.d_model)
    if model.device.type != "meta":
        model.score.init_weights(0.0)
