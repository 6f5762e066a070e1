"""Mixtures of experts around any feed-forward layer, and the absence of one."""

from collections.abc import Callable

from tinyllm.nn.feedforward import FeedForward
from tinyllm.nn.parts import make


def dense(*, ffn: Callable[..., FeedForward], d_model: int, model_d_ff: int, bias: bool) -> FeedForward:
    """One feed-forward layer for every token: no mixture."""
    layer: FeedForward = make(ffn, d_model=d_model, model_d_ff=model_d_ff, bias=bias)
    return layer
