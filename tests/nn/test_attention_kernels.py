"""Every attention kernel against a masked softmax in float64."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from tinyllm.nn.attention.block_kernel import BlockConfig, block_attention
from tinyllm.nn.attention.fused_kernel import for_fused_kernel
from tinyllm.nn.attention.kernels import MAX_BLOCKED_LEN, attend, block_size, chosen_kernel, saved_activations
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.attention.window_kernel import folded_attention

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
SEEN = [(0, 0), (1, 0), (3, 0), (3, 2), (1, 1), (7, 3), (12, 1), (5, 20)]
"""(window, sinks): one key, a few, more than the sequence has."""


def weights(q: Tensor, k: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """(B, H, T, S) attention weights; query i of the last T positions is at position S−T+i."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2) * scale
    if mask.softcap:
        scores = mask.softcap * torch.tanh(scores / mask.softcap)
    return scores.masked_fill(~visible(q.shape[2], k.shape[2], mask), float("-inf")).softmax(-1)


@cache
def visible(n_queries: int, n_keys: int, mask: AttentionMask) -> Tensor:
    return torch.tensor(
        [
            [
                key <= query and (not mask.window or query - key < mask.window or key < mask.sinks)
                for key in range(n_keys)
            ]
            for query in range(n_keys - n_queries, n_keys)
        ]
    )


def reference(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    values = v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return weights(q.double(), k.double(), mask, scale) @ values.double()


def tensors(
    heads: int, kv_heads: int, queries: int, keys: int, dtype: torch.dtype, sizes: tuple[int, int] = (8, 8)
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, heads, queries, sizes[0]), (2, kv_heads, keys, sizes[0]), (2, kv_heads, keys, sizes[1])]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def kernels(mask: AttentionMask, scale: float) -> Iterator[Kernel]:
    """Every kernel that supports the mask, with block sizes that divide the length or not, and ``attend`` itself."""
    for block in (1, 3, 4, 16):
        config = BlockConfig(block, mask.window, mask.sinks, mask.softcap, scale, 0.0)
        yield partial(block_attention, config=config)
    if mask.window and not mask.softcap:
        yield partial(folded_attention, window=mask.window, sinks=mask.sinks, scale=scale, dropout_p=0.0)
    yield partial(attend, mask=mask, scale=scale, dropout_p=0.0)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("window", "sinks"), SEEN)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (2, 2), (13, 13), (13, 20), (3, 40), (33, 33)])
def test_output_and_gradients_of_every_kernel(queries: int, keys: int, window: int, sinks: int, softcap: float) -> None:
    """With shared heads, values that differ in size from keys, and more keys than queries."""
    mask = AttentionMask(window=window, sinks=sinks if window else 0, softcap=softcap)
    for kv_heads, sizes in ((4, (6, 6)), (2, (6, 4)), (1, (4, 6))):
        inputs = tensors(4, kv_heads, queries, keys, torch.float64, sizes)
        upstream = torch.randn(2, 4, queries, sizes[1], dtype=torch.float64)
        expected = reference(*inputs, mask, 0.4)
        expected_grads = torch.autograd.grad(expected, inputs, upstream)
        for kernel in kernels(mask, 0.4):
            actual = kernel(*inputs)
            found = torch.autograd.grad(actual, inputs, upstream)
            torch.testing.assert_close((actual, *found), (expected, *expected_grads), rtol=1e-9, atol=1e-9)
            with torch.no_grad():
                torch.testing.assert_close(kernel(*inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "mask",
    [
        AttentionMask(),
        AttentionMask(window=70),
        AttentionMask(window=33, sinks=5),
        AttentionMask(softcap=2.0),
        AttentionMask(window=130, softcap=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [5, 130, 390])
def test_chosen_kernel_equals_the_reference(
    length: int, mask: AttentionMask, kv_heads: int, dtype: torch.dtype
) -> None:
    inputs = tensors(4, kv_heads, length, length, dtype)
    upstream = torch.randn(2, 4, length, 8)
    expected = reference(*inputs, mask, 8**-0.5)
    actual = attend(*inputs, mask=mask, dropout_p=0.0)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    expected_grads = torch.autograd.grad(expected, inputs, upstream.double())
    found = torch.autograd.grad(actual, inputs, upstream.to(dtype))
    for tensor, other in zip((actual, *found), (expected, *expected_grads), strict=True):
        assert (tensor.double() - other.double()).norm() / other.double().norm() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(8, 8), (12, 8), (8, 12)], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_queries_are_aligned_with_the_last_keys(
    kv_heads: int, queries: int, keys: int, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    with torch.no_grad():
        inputs = tensors(4, kv_heads, queries, keys, dtype, sizes)
        actual, expected = attend(*inputs, dropout_p=0.0), reference(*inputs, AttentionMask(), sizes[0] ** -0.5)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("queries", [1, 3])
def test_visible_keys_can_be_given_as_a_mask(queries: int, softcap: float) -> None:
    inputs = tensors(4, 2, queries, 7, torch.float64)
    seen = torch.rand(2, 1, queries, 7) < 0.5
    seen[..., 0] = True
    q, k, v = inputs
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    expected = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)
    actual = attend(*inputs, mask=AttentionMask(window=2, softcap=softcap), visible=seen, dropout_p=0.0)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "mask",
    [AttentionMask(), AttentionMask(window=40), AttentionMask(window=30, sinks=10), AttentionMask(softcap=3.0)],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["bf16", "fp32", "folded"])
def test_dropout_has_the_right_rate_and_mean(kernel: str, mask: AttentionMask) -> None:
    """With values of 1, an output is the sum of the remaining weights, scaled by 1/(1−p)."""
    if kernel == "folded" and not mask.window:
        pytest.skip("folds windows only")
    torch.manual_seed(0)
    n, p = 64, 0.3
    q = torch.zeros(256, 4, n, 8, dtype=torch.bfloat16 if kernel == "bf16" else torch.float32, requires_grad=True)
    k, v = torch.zeros_like(q), torch.ones_like(q)
    if kernel == "folded":
        out = folded_attention(q, k, v, window=mask.window, sinks=mask.sinks, scale=1.0, dropout_p=p)
    else:
        out = attend(q, k, v, mask=mask, dropout_p=p)
    out = out.detach().float()[..., 0]
    seen = mask.keys_seen(n)
    assert abs(out.mean() - 1) < 0.01
    last = out[:, :, -1]  # that many weights of 1/seen, each dropped with p
    assert abs(last.var() - p / (1 - p) / seen) < 0.2 * p / (1 - p) / seen
    first = out[:, :, 0]  # one weight: 0 or 1/(1−p)
    assert first.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=0.01)


@pytest.mark.parametrize(("window", "sinks", "softcap"), [(0, 0, 0.0), (3, 0, 0.0), (2, 2, 1.5)])
def test_dropout_gradients_of_the_block_kernel(window: int, sinks: int, softcap: float) -> None:
    """With values that are the identity, the output is the dropped weights; what is left of them is what dropped
    weights times values must be, and so are the gradients."""
    mask, p, length = AttentionMask(window=window, sinks=sinks, softcap=softcap), 0.4, 11
    q, k, v = tensors(4, 2, length, length, torch.float64)
    config = BlockConfig(4, window, sinks, softcap, 0.4, p)

    def attended(values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return block_attention(q, k, values, config=config)

    exact = weights(q, k, mask, 0.4)
    dropped = attended(torch.eye(length, dtype=torch.float64).expand(2, 2, -1, -1))
    kept = (dropped != 0).double() / (1 - p)
    assert 0 < (exact[kept == 0] > 0).double().mean() < 1
    expected = (exact * kept) @ v.repeat_interleave(2, 1)
    actual = attended(v)
    upstream = torch.randn_like(actual)
    torch.testing.assert_close(dropped, exact * kept, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        (actual, *torch.autograd.grad(actual, (q, k, v), upstream)),
        (expected, *torch.autograd.grad(expected, (q, k, v), upstream)),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "mask", [AttentionMask(), AttentionMask(window=6), AttentionMask(window=3, sinks=2, softcap=2.0)], ids=str
)
def test_invisible_keys_do_not_change_a_bit(mask: AttentionMask) -> None:
    for block in (4, 8, 16):
        config = BlockConfig(block, mask.window, mask.sinks, mask.softcap, 0.4, 0.0)
        q, k, v = tensors(4, 2, 16, 16, torch.bfloat16)
        before = block_attention(q, k, v, config=config)
        with torch.no_grad():
            k[:, :, 10:] += 3
            v[:, :, 10:] -= 2
        after = block_attention(q, k, v, config=config)
        assert torch.equal(before[:, :, :10], after[:, :, :10])
        if mask.window:
            with torch.no_grad():
                k[:, :, 5] += 3
                v[:, :, 5] -= 2
            last = block_attention(q, k, v, config=config)
            assert torch.equal(last[:, :, 5 + mask.window :], after[:, :, 5 + mask.window :])
            assert not torch.equal(last[:, :, 5 + mask.window - 1], after[:, :, 5 + mask.window - 1])


def test_sinks_in_bf16_accumulate_gradients_of_all_blocks() -> None:
    """A bf16 sum over many blocks would stop growing."""
    q, k, v = (t.detach().requires_grad_() for t in tensors(1, 1, 1024, 1024, torch.bfloat16))
    mask = AttentionMask(window=4, sinks=1)
    upstream = torch.ones(2, 1, 1024, 8)
    found = torch.autograd.grad(attend(q, k, v, mask=mask, dropout_p=0.0), v, upstream.bfloat16())[0][:, :, 0]
    exact = weights(q.double(), k.double(), mask, 8**-0.5).sum(2)[:, :, 0, None].expand_as(found)
    torch.testing.assert_close(found.double(), exact.double(), rtol=0.02, atol=0)


def saved_values(kernel: Callable[[], Tensor], length: int) -> int:
    """Number of values in score tensors (N, rows, columns) that are saved for the backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.ndim == 3 and tensor.shape[1:] != (length, 8) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel()
    return sum(kept)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "mask",
    [AttentionMask(), AttentionMask(window=50), AttentionMask(window=60, sinks=3), AttentionMask(softcap=2.0)],
    ids=str,
)
@pytest.mark.parametrize("length", [16, 128, 520])
def test_chosen_kernel_is_named_and_its_memory_counted(
    length: int, mask: AttentionMask, dtype: torch.dtype, dropout_p: float
) -> None:
    block = block_size("cpu", dtype, length, window=mask.window_within(length), softcap=mask.softcap)
    name = chosen_kernel("cpu", dtype, length, mask)
    if not block:
        assert name == "scaled_dot_product_attention"
        assert saved_activations("cpu", dtype, length, mask) == 0
        return
    assert f"blocks ({-(-length // block)}" in name
    assert (f"window {mask.window}" in name) == (length > mask.window + mask.sinks > 0)
    q, k, v = (t.detach().requires_grad_() for t in tensors(1, 1, length, length, dtype))
    found = saved_values(lambda: attend(q, k, v, mask=mask, dropout_p=dropout_p), length)
    assert found == 2 * saved_activations("cpu", dtype, length, mask, dropout_p=dropout_p)


def test_other_devices_use_the_fused_kernel() -> None:
    assert chosen_kernel("cuda", torch.bfloat16, 128) == "scaled_dot_product_attention"
    assert chosen_kernel("cuda", torch.bfloat16, 512, AttentionMask(window=64)) == (
        "scaled_dot_product_attention (blocks, window 64)"
    )
    assert "lower-triangular" in chosen_kernel("cuda", torch.bfloat16, 512, AttentionMask(softcap=2.0))
    assert "scaled_dot" in chosen_kernel("cpu", torch.float32, 2**14, AttentionMask(window=MAX_BLOCKED_LEN + 1))


@pytest.mark.parametrize("kernel", ["blocks", "folded"])
def test_windowed_attention_is_linear_in_the_length(kernel: str) -> None:
    """In FLOPs and in the size of the largest intermediate tensor, which is never T²."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    flops = {}
    window, sinks = 32, 2
    for length in (1024, 2048):
        q, k, v = (torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(3))
        counter, largest = FlopCounterMode(display=False), 0
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter, Largest():
            if kernel == "blocks":
                out = attend(q, k, v, mask=AttentionMask(window=window, sinks=sinks), dropout_p=0.0)
            else:
                out = folded_attention(q, k, v, window=window, sinks=sinks, scale=1.0, dropout_p=0.0)
            out.sum().backward()
        flops[length] = counter.get_total_flops()
        assert largest <= length * (2 * window + sinks)
    assert 1.9 < flops[2048] / flops[1024] < 2.1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(64, 64), (96, 64)], ids=str)
@pytest.mark.parametrize(
    "mask",
    [
        AttentionMask(),
        AttentionMask(window=70),
        AttentionMask(window=33, sinks=5),
        AttentionMask(window=40, softcap=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (40, 300), (1, 30)])
def test_on_a_gpu(queries: int, keys: int, mask: AttentionMask, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    inputs = tensors(4, 2, queries, keys, dtype, sizes)
    moved = [t.detach().cuda().requires_grad_() for t in inputs]
    expected = reference(*inputs, mask, sizes[0] ** -0.5)
    actual = attend(*moved, mask=mask, dropout_p=0.0)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    found = torch.autograd.grad(actual, moved, upstream.to(actual))
    tolerance = 1e-2 if dtype == torch.float32 else 0.03  # fp32 products may run in TF32
    for tensor, other in zip((actual, *found), (expected, *expected_grads), strict=True):
        assert (tensor.double().cpu() - other.double()).norm() / other.double().norm() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(64, 64), (96, 64), (288, 64)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_gpu_kernel_is_given(masked: bool, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """FlashAttention wants values as wide as keys, the kernel for what it does not take no groups; neither changes the
    result."""
    q, k, v = (x.detach() for x in tensors(4, 2, 20, 20, dtype, sizes))
    keys, values = for_fused_kernel(k, v, n_heads=4, is_masked=masked, device="cuda")
    flash = dtype == torch.bfloat16 and sizes[0] <= 256 and not masked
    assert keys.shape[1] == (2 if flash else 4) and values.shape[-1] == (sizes[0] if flash else sizes[1])
    given = {"attn_mask": torch.ones(20, 20, dtype=torch.bool).tril_()} if masked else {"is_causal": True}
    attention = torch.nn.functional.scaled_dot_product_attention
    q, k, v, keys, values = (x.float() for x in (q, k, v, keys, values))
    out = attention(q, keys, values, enable_gqa=flash, **given)[..., : sizes[1]]
    torch.testing.assert_close(out, attention(q, k, v, enable_gqa=True, **given))
