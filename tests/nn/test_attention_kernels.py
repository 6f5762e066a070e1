"""Every kernel of attention against softmax written out in float64."""

import pytest
import torch
from torch import Tensor

from tinyllm.nn.attention.attend import attend, chosen_kernel, kept_weights, n_blocks
from tinyllm.nn.attention.blocks import block_attention


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Row by row, in float64: query i of the last T positions attends to keys 0 … S−T+i."""
    q, k, v = q.double(), k.double(), v.double()
    share = q.shape[1] // k.shape[1]
    offset = k.shape[2] - q.shape[2]
    rows = []
    for head in range(q.shape[1]):
        for i in range(q.shape[2]):
            keys, values = k[:, head // share, : offset + i + 1], v[:, head // share, : offset + i + 1]
            scores = (keys @ q[:, head, i, :, None]).squeeze(-1) / q.shape[-1] ** 0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            rows.append((weights[:, None] @ values).squeeze(1))
    return torch.stack(rows, 1).view(q.shape[0], q.shape[1], q.shape[2], -1)


def tensors(heads: int, kv_heads: int, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, heads, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 13, 20])
@pytest.mark.parametrize("length", [1, 2, 13])
def test_blocks_value_and_gradients(length: int, blocks: int, kv_heads: int) -> None:
    """Blocks that do not divide the length, more blocks than queries, shared heads."""
    inputs = tensors(4, kv_heads, length, length, torch.float64)
    upstream = torch.randn(2, 4, length, 8, dtype=torch.float64)
    expected = reference(*inputs)
    actual = block_attention(*inputs, n_blocks=blocks, dropout_p=0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [5, 130, 390])
def test_the_kernel_that_is_chosen(length: int, kv_heads: int, dtype: torch.dtype) -> None:
    inputs = tensors(4, kv_heads, length, length, dtype)
    upstream = torch.randn(2, 4, length, 8)
    expected = reference(*inputs)
    actual = attend(*inputs, dropout_p=0.0)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    wanted = torch.autograd.grad(expected, inputs, upstream.double())
    found = torch.autograd.grad(actual, inputs, upstream.to(dtype))
    for one, other in zip((actual, *found), (expected, *wanted), strict=True):
        assert (one.double() - other.double()).norm() / other.double().norm() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_queries_are_the_last_positions(kv_heads: int, queries: int, keys: int, dtype: torch.dtype) -> None:
    with torch.no_grad():
        inputs = tensors(4, kv_heads, queries, keys, dtype)
        actual, expected = attend(*inputs, dropout_p=0.0), reference(*inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", ["blocks", "sdpa"])
def test_dropout_drops_weights_at_its_rate_and_keeps_the_mean(kernel: str) -> None:
    """With values of one, an output is the sum of the weights that are left, scaled by 1/(1−p)."""
    torch.manual_seed(0)
    n, p = 64, 0.3
    q = torch.zeros(256, 4, n, 8, dtype=torch.bfloat16 if kernel == "blocks" else torch.float32, requires_grad=True)
    k, v = torch.zeros_like(q), torch.ones_like(q)
    out = attend(q, k, v, dropout_p=p).detach().float()[..., 0]
    assert abs(out.mean() - 1) < 0.01
    last = out[:, :, -1]  # n weights of 1/n, each dropped with p
    assert abs(last.var() - p / (1 - p) / n) < 0.2 * p / (1 - p) / n
    first = out[:, :, 0]  # one weight: 0 or 1/(1−p)
    assert first.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=0.01)


def test_gradients_with_dropout_are_those_of_the_dropped_weights() -> None:
    """Finite differences in float64, with the same mask each time."""
    inputs = tensors(4, 2, 7, 7, torch.float64)

    def attended(*qkv: Tensor) -> Tensor:
        torch.manual_seed(1)
        return block_attention(*qkv, n_blocks=3, dropout_p=0.4)

    assert torch.autograd.gradcheck(attended, tuple(inputs))


def test_no_bit_depends_on_later_tokens() -> None:
    for blocks in (1, 2, 4):
        q, k, v = tensors(4, 2, 16, 16, torch.bfloat16)
        before = block_attention(q, k, v, n_blocks=blocks, dropout_p=0.0)
        with torch.no_grad():
            k[:, :, 10:] += 3
            v[:, :, 10:] -= 2
        after = block_attention(q, k, v, n_blocks=blocks, dropout_p=0.0)
        assert torch.equal(before[:, :, :10], after[:, :, :10])


def test_the_choice_is_named_and_counted() -> None:
    assert chosen_kernel("cuda", torch.bfloat16, 128) == "scaled_dot_product_attention"
    assert n_blocks("cpu", torch.float32, 128) == 0
    for length in (16, 128, 512):
        blocks = n_blocks("cpu", torch.bfloat16, length)
        assert str(blocks) in chosen_kernel("cpu", torch.bfloat16, length)
        kept: list[int] = []
        q, k, v = (t.bfloat16().detach().requires_grad_() for t in tensors(1, 1, length, length, torch.float32))
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept, length=length: kept.append(t.numel() if t.ndim == 3 and t.shape[-1] != 8 else 0) or t,
            lambda t: t,
        )
        with hooks:
            attend(q, k, v, dropout_p=0.0)
        assert sum(kept) == 2 * kept_weights("cpu", torch.bfloat16, length)
