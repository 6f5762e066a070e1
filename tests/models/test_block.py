"""Blocks: the three kinds of dropout, and QK-norm."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.options import small


class Ones(nn.Module):
    """Stands in for a layer of the block; its output is all ones."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, **_: Any) -> Any:
        return self.answer(x)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("part", ["attn", "ffn"])
def test_residual_dropout_applies_to_the_output_of_each_layer(part: str, parallel: bool) -> None:
    block = small(dropout=0.25, parallel_block=parallel).layers()[0]
    block.attn = Ones(torch.ones_like if part == "attn" else torch.zeros_like)
    block.ffn = Ones(lambda x: (torch.ones_like(x) if part == "ffn" else torch.zeros_like(x), None))
    x = torch.randn(8, 100, 32)
    added = block(x)[0] - x
    dropped = added.abs() < 0.5
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 1 / 0.75))
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.015)
    torch.testing.assert_close(block.eval()(x)[0] - x, torch.ones_like(x))


@pytest.mark.parametrize("pos", ["rope", "learned", "sinusoidal"])
def test_embedding_dropout_applies_to_the_sum_of_token_and_position(pos: str) -> None:
    model = small(f"pos={pos}", dropout=0.25, max_seq_len=200)
    model.norm, ids = nn.Identity(), torch.randint(31, (8, 200))  # type: ignore[assignment]
    dropped = model.forward_with_routing(ids, active_blocks=[False, False])[0]
    whole = model.eval().forward_with_routing(ids, active_blocks=[False, False])[0]
    gone = (dropped == 0) & (whole != 0)
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.75)
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("attn", ["mha", "gqa", "mla"])
def test_attention_dropout_applies_to_the_weights(attn: str) -> None:
    """The first token sees only itself, with weight 1: each head's value is scaled by 1/(1−p) or dropped."""
    layer = small(f"attn={attn}", attn_dropout=0.25).layers()[0].attn
    layer.out = nn.Identity()
    x = torch.randn(1, 1, 32).expand(3000, -1, -1)
    heads = layer(x).unflatten(-1, (4, -1))
    whole = layer.eval()(x).unflatten(-1, (4, -1))
    gone = (heads == 0).all(-1)
    torch.testing.assert_close(heads[~gone], whole[~gone] / 0.75)
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_qk_norm_is_per_head_and_before_the_rotation() -> None:
    """Against the formula in float64, with weights other than the initial ones."""
    overrides = ("attn=gqa", "model.block.attn.qk_norm=true", "model.norm.eps=1e-3")
    layer: Any = small(*overrides).layers()[0].attn
    with torch.no_grad():
        for norm in (layer.q_norm, layer.k_norm):
            norm.weight.copy_(torch.rand(8) + 0.5)
    layer, x = layer.double(), torch.randn(1, 6, 32, dtype=torch.float64)
    q, k, v = (x @ layer.qkv.weight.t()).view(6, 8, 8).split((4, 2, 2), dim=1)

    def normed(x_THD: Tensor, weight: Tensor) -> Tensor:
        return x_THD / (x_THD.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight

    def turned(x_THD: Tensor) -> Tensor:
        angle = torch.arange(6)[:, None, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
        pairs = torch.complex(x_THD[..., :4], x_THD[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    q, k = turned(normed(q, layer.q_norm.weight)), turned(normed(k, layer.k_norm.weight))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = torch.einsum("thd,shd->hts", q, k) / 8**0.5
    weights = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v).flatten(1) @ layer.out.weight.t()
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-5)
