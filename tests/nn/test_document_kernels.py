"""Kernels of attention within documents, against attention with a mask of all queries and keys."""

import pytest
import torch
from torch import Tensor

from tinyllm.nn.attention import document_kernel
from tinyllm.nn.attention.document_kernel import document_lengths, groups_of
from tinyllm.nn.attention.flex_kernel import block_mask, flex_documents, visible_blocks
from tinyllm.nn.attention.kernels import attend_documents
from tinyllm.nn.attention.masking import AttentionMask, document_starts

MASKS = {
    "causal": AttentionMask(),
    "window": AttentionMask(window=9),
    "sinks": AttentionMask(window=9, sinks=2),
    "softcap": AttentionMask(softcap=3.0),
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def documents(batch: int, length: int, *, mean: int, seed: int = 0) -> Tensor:
    """Documents of random lengths: (batch, length)."""
    return (torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 1 / mean).cumsum(1)


def inputs(doc_ids: Tensor, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys of two, and values of another size."""
    B, T = doc_ids.shape
    torch.manual_seed(1)
    q, k, v = torch.randn(B, 4, T, 8), torch.randn(B, 2, T, 8), torch.randn(B, 2, T, 6)
    return q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, doc_ids: Tensor, mask: AttentionMask, *, scale: float = 0.3
) -> Tensor:
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = scale * q @ k.transpose(-1, -2)
    if mask.softcap:
        scores = mask.softcap * torch.tanh(scores / mask.softcap)
    return scores.masked_fill(~mask.within_documents(doc_ids), float("-inf")).softmax(-1) @ v


@masks
@pytest.mark.parametrize("mean", [2, 15, 60])
@pytest.mark.parametrize("group", [1, 16])
def test_documents_one_by_one(mask: AttentionMask, mean: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_kernel, "GROUP", group)
    doc_ids = documents(3, 50, mean=mean)
    qkv = inputs(doc_ids)
    out = attend_documents(*qkv, doc_ids, mask=mask, scale=0.3, dropout_p=0.0)
    expected = by_definition(*qkv, doc_ids, mask)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, dtype=out.dtype)
    torch.testing.assert_close(torch.autograd.grad(out, qkv, upstream), torch.autograd.grad(expected, qkv, upstream))


def test_bf16_is_as_close_to_fp64_as_rounding_allows() -> None:
    doc_ids = documents(3, 50, mean=10)
    exact = inputs(doc_ids)
    rounded = inputs(doc_ids, dtype=torch.bfloat16)
    settings = {"mask": AttentionMask(), "scale": 0.3, "dropout_p": 0.0}
    out = attend_documents(*rounded, doc_ids, **settings)  # type: ignore[arg-type]
    expected = by_definition(*exact, doc_ids, AttentionMask())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.03)
    gradients = torch.autograd.grad(out.float().square().sum(), rounded)
    expected_gradients = torch.autograd.grad(expected.square().sum(), exact)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 0.02


def test_nothing_is_as_large_as_a_mask_of_the_row() -> None:
    """With documents of 16 tokens in a row of 2048, no tensor of the forward pass has 2048² elements, nor a tenth."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                one.numel() for one in (out if isinstance(out, tuple | list) else [out]) if hasattr(one, "numel")
            )
            return out

    doc_ids = (torch.arange(2048) // 16)[None]
    q, k, v = (torch.randn(1, 1, 2048, 4) for _ in range(3))
    with Sizes():
        attend_documents(q, k, v, doc_ids, mask=AttentionMask(), scale=1.0, dropout_p=0.0)
    assert max(sizes) < 2048**2 / 10


def test_short_documents_share_a_call_within_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_kernel, "GROUP", 6)
    doc_ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [5] * 9 + [6]])
    rows = document_lengths(doc_ids)
    assert rows == [[2, 3, 2, 3], [9, 1]]
    assert [tuple(group) for group in groups_of(rows)] == [(5, 2), (5, 2), (9, 1), (1, 1)]


@masks
@pytest.mark.parametrize("mean", [3, 40, 200])
def test_blocks_that_flex_attention_computes_are_the_visible_ones(mask: AttentionMask, mean: int) -> None:
    """Every visible pair is in a computed block, every pair of a whole block is visible, and without sinks no block is
    computed for nothing."""
    size, doc_ids = 8, documents(4, 100, mean=mean)
    visible_BTT = mask.within_documents(doc_ids)[:, 0]
    padded = torch.zeros(4, 104, 104, dtype=torch.bool)
    padded[:, :100, :100] = visible_BTT
    blocks = padded.unflatten(2, (13, size)).unflatten(1, (13, size)).transpose(2, 3)
    seen, whole = visible_blocks(document_starts(doc_ids), mask, size)
    any_visible = blocks.flatten(3).any(-1)
    assert not (any_visible & ~seen).any()
    assert not (whole & ~blocks.flatten(3).all(-1))[:, :12].any()
    if not mask.sinks:
        assert torch.equal(seen, any_visible)


@pytest.mark.parametrize("mask", [MASKS["sinks"], MASKS["softcap"]], ids=["sinks", "softcap"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention(mask: AttentionMask) -> None:
    """Uncompiled, on the CPU: what a GPU would compute, for blocks of 128."""
    doc_ids = documents(2, 300, mean=70)
    q, k, v = (x.detach() for x in inputs(doc_ids, dtype=torch.float32))
    with torch.no_grad():
        out = flex_documents(q, k, v, doc_ids, mask=mask, scale=0.3)
        torch.testing.assert_close(out, by_definition(q, k, v, doc_ids, mask), rtol=1e-4, atol=1e-5)
    assert block_mask(document_starts(doc_ids), mask).seq_lengths == (300, 300)


@pytest.mark.gpu
@masks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(mask: AttentionMask, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    doc_ids = documents(2, 300, mean=70)
    torch.manual_seed(1)
    shapes = (2, 4, 300, 64), (2, 2, 300, 64), (2, 2, 300, 64)
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    moved = [x.detach().to("cuda", dtype).requires_grad_() for x in qkv]
    out = attend_documents(*moved, doc_ids.cuda(), mask=mask, scale=0.1, dropout_p=0.0)
    expected = by_definition(*qkv, doc_ids, mask, scale=0.1)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    found = torch.autograd.grad(out, moved, upstream.to(out))
    tolerance = 1e-2 if dtype == torch.float32 else 0.03  # fp32 products may run in TF32
    for got, exact in zip((out, *found), (expected, *torch.autograd.grad(expected, qkv, upstream)), strict=True):
        assert (got.cpu() - exact).norm() / exact.norm() < tolerance
