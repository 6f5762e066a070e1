"""Key-value caches: rings, rows of different lengths, and views of rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tinyllm.nn.attention.base import Attention
from tinyllm.nn.attention.mha import GQA
from tinyllm.nn.attention.mla import MLA
from tinyllm.nn.cache import Cache, LayerCache
from tinyllm.nn.position import NoPosition, Rope

CPU = torch.device("cpu")
MASKS: list[dict[str, Any]] = [
    {"window": 0, "sinks": 0, "softcap": 0.0},
    {"window": 1, "sinks": 0, "softcap": 0.0},
    {"window": 5, "sinks": 0, "softcap": 0.0},
    {"window": 4, "sinks": 3, "softcap": 1.0},
    {"window": 30, "sinks": 2, "softcap": 0.0},
]
LENGTH = 40


def layer(**changes: int) -> LayerCache:
    """A cache of two rows, with a head of size 3 and one of size 2."""
    sizes = {"batch_size": 2, "max_len": 5} | changes
    return LayerCache([(1, 3), (1, 2)], **sizes, device=CPU, dtype=torch.float32)


def attention(kind: str, mask: dict[str, Any]) -> Attention:
    torch.manual_seed(0)
    common = {"d_model": 24, "n_heads": 4, "bias": True, "attn_dropout": 0.0} | mask
    pos = Rope(max_seq_len=LENGTH, base=100.0) if kind != "gqa, no positions" else NoPosition()
    built: Attention
    if kind == "mla":
        latent = dict.fromkeys(("kv_latent_dim", "q_latent_dim", "nope_head_dim", "v_head_dim"))
        built = MLA(**common, **latent, rope_head_dim=4, latent_norm_eps=1e-6, pos=pos)
    else:
        built = GQA(**common, n_kv_heads=2, head_dim=6, qk_norm=False, norm_eps=1e-5, pos=pos)
    built.init_weights(std=0.4, residual_std=0.4)
    return built.double().eval()


def cache_of(attn: Attention, batch_size: int = 2, max_len: int = LENGTH) -> LayerCache:
    return attn.make_cache(batch_size, max_len, device=CPU, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=["gqa", "gqa, no positions", "mla"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MASKS, ids=str)
def attn(request: pytest.FixtureRequest, kind: str) -> Attention:
    return attention(kind, request.param)


def test_update_returns_what_was_written() -> None:
    cache = layer()
    k, v = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 4, 2)
    cache.update(k[:, :, :3], v[:, :, :3], start=0)
    found, visible = cache.update(k[:, :, 3:], v[:, :, 3:], start=3)
    assert torch.equal(found[0], k) and torch.equal(found[1], v) and visible is None
    assert cache.nbytes() == 2 * 5 * (3 + 2) * 4


@pytest.mark.parametrize(
    "pieces", [[1] * LENGTH, [17] + [1] * 23, [3] * 13 + [1], [1, 12, 2, 20, 5], [LENGTH]], ids=str
)
@torch.no_grad()
def test_pieces_of_any_length_equal_the_full_forward(attn: Attention, pieces: list[int]) -> None:
    """Far past the window, in pieces shorter and longer than it."""
    x = torch.randn(2, LENGTH, 24, dtype=torch.float64)
    cache, start, found = cache_of(attn), 0, []
    for n in pieces:
        found.append(attn(x[:, start : start + n], start=start, cache=cache))
        start += n
    close(torch.cat(found, 1), attn(x))


@torch.no_grad()
def test_every_prefill_length_equals_the_full_forward(attn: Attention) -> None:
    x = torch.randn(1, LENGTH, 24, dtype=torch.float64)
    full = attn(x)
    cache = cache_of(attn, 1)
    for prefill in range(1, LENGTH):
        attn(x[:, :prefill], start=0, cache=cache)
        close(attn(x[:, prefill : prefill + 1], start=prefill, cache=cache), full[:, prefill : prefill + 1])


@pytest.mark.parametrize("n", [1, 2, 9])
@torch.no_grad()
def test_rows_of_different_lengths_equal_each_row_alone(attn: Attention, n: int) -> None:
    """Prompts of several lengths, one beyond the window, then all rows together, n tokens at a time."""
    lengths, steps = [1, 19, 8], LENGTH - 19
    x = torch.randn(3, LENGTH, 24, dtype=torch.float64)
    full = attn(x)
    cache = cache_of(attn, 3)
    for row, length in enumerate(lengths):
        attn(x[row : row + 1, :length], start=0, cache=cache.rows(row, row + 1))
    for done in range(0, steps - n + 1, n):
        starts = [length + done for length in lengths]
        piece = torch.stack([x[row, start : start + n] for row, start in enumerate(starts)])
        expected = torch.stack([full[row, start : start + n] for row, start in enumerate(starts)])
        close(attn(piece, start=torch.tensor(starts), cache=cache), expected)


@torch.no_grad()
def test_equal_lengths_as_a_tensor_equal_an_int(attn: Attention) -> None:
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    by_row, together = cache_of(attn), cache_of(attn)
    for i in range(12):
        piece = x[:, i : i + 1]
        close(attn(piece, start=torch.tensor([i, i]), cache=by_row), attn(piece, start=i, cache=together))


@torch.no_grad()
def test_a_row_can_restart_while_the_others_continue(attn: Attention) -> None:
    x = torch.randn(2, LENGTH, 24, dtype=torch.float64)
    cache = cache_of(attn)
    attn(x[:, :25], start=0, cache=cache)
    attn(x[1:, 20:26], start=0, cache=cache.rows(1, 2))
    found = attn(torch.stack((x[0, 25:26], x[1, 26:27])), start=torch.tensor([25, 6]), cache=cache)
    close(found[:1], attn(x[:1, :26])[:, 25:])
    close(found[1:], attn(x[1:, 20:27])[:, 6:])


@torch.no_grad()
def test_one_prompt_can_be_copied_to_all_rows(attn: Attention) -> None:
    x = torch.randn(1, 20, 24, dtype=torch.float64).repeat(3, 1, 1)
    x[:, 15:] = torch.randn(3, 5, 24, dtype=torch.float64)
    cache = cache_of(attn, 3)
    attn(x[:1, :15], start=0, cache=cache.rows(0, 1))
    cache.repeat_first()
    close(attn(x[:, 15:16], start=15, cache=cache), attn(x)[:, 15:16])


def test_memory_is_bounded_by_the_window(attn: Attention) -> None:
    """Whatever the length; and the layer's own count equals the size of its buffers."""
    slots = {0: 1000, 1: 1, 5: 5, 4: 7, 30: 32}[attn.mask.window]  # type: ignore[union-attr]
    for max_len in (1000, 3):
        cache = cache_of(attn, 2, max_len)
        assert attn.cache_slots(max_len) == min(slots, max_len)
        assert cache.nbytes() == 2 * min(slots, max_len) * attn.cache_bytes_per_token(torch.float64)


def test_decoding_uses_no_mask_and_no_copy() -> None:
    """One token per row of equal length returns the buffers themselves."""
    for window, filled in ((0, [1, 2, 3, 4, 5]), (2, [1, 2, 3, 3, 3])):
        cache = layer(window=window, sinks=1 if window else 0)
        for start, expected in enumerate(filled):
            found, visible = cache.update(torch.randn(2, 1, 1, 3), torch.randn(2, 1, 1, 2), start=start)
            assert visible is None
            for tensor, buffer in zip(found, cache.buffers, strict=True):
                assert tensor.shape[2] == expected and tensor.data_ptr() == buffer.data_ptr()


def test_lengths_advance_per_row() -> None:
    cache = Cache([layer()], max_len=5)
    cache.rows(1, 2).advance(3)
    assert cache.length == 3 and isinstance(cache.start, Tensor) and cache.start.tolist() == [0, 3]
    cache.rows(0, 1).advance(3)
    assert cache.start == 3
    cache.rows(0, 1).reset()
    assert cache.lengths_B.tolist() == [0, 3]
    cache.advance(1)
    cache.repeat_first()
    assert cache.start == 1 and cache.length == 1
    cache.reset()
    assert cache.length == 0


def test_rows_share_the_buffers() -> None:
    cache = Cache([layer(), layer()], max_len=5)
    row = cache.rows(1, 2)
    for part in row.layers:
        part.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 2), start=0)
    for part in cache.layers:
        assert not part.buffers[0][0].any() and part.buffers[0][1, :, :2].all()
    assert row.nbytes() * 2 == cache.nbytes()
