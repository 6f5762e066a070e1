"""Decoding with a cache, without one, and a full forward pass agree for every attention and position there
is."""

import pytest
import torch

from tests.support.models import options, tiny_model
from tinyllm.inference.decoding import Decoder, decode
from tinyllm.inference.sampling import Sampling, TokenChooser

CONTEXT = 12
EVERY_KIND = [
    pytest.param(attn, pos, marks=[] if attn == "mha" or pos == "rope" else [pytest.mark.slow])
    for attn in options("attn")
    for pos in options("pos")
]
"""Every day each attention with one position, and each position with one attention."""


def in_view(prompt: list[int], new: list[int], context: int) -> list[int]:
    """The view after ``new`` appended tokens, computed independently from the documented rule."""
    seen = prompt[-context:]
    for token in new:
        full = len(seen) == context
        seen = [*seen, token]
        if full:
            seen = seen[len(seen) - max(context // 2, 1) :]
    return seen


@pytest.mark.parametrize("kv_cache", [True, False])
@pytest.mark.parametrize("prompt_length", [1, CONTEXT - 1, CONTEXT + 7])
@pytest.mark.parametrize(("attn", "pos"), EVERY_KIND)
def test_cached_logits_equal_a_full_forward_pass_past_the_context(
    attn: str, pos: str, prompt_length: int, kv_cache: bool
) -> None:
    model = tiny_model(f"attn={attn}", f"pos={pos}", max_seq_len=CONTEXT).eval()
    numbers = torch.Generator().manual_seed(prompt_length)
    prompt = torch.randint(17, (prompt_length,), generator=numbers).tolist()
    new = torch.randint(17, (2 * CONTEXT,), generator=numbers).tolist()  # forced, so that they are varied
    decoder = Decoder(model, [prompt], n_samples=2, max_new_tokens=len(new) + 1, kv_cache=kv_cache)
    for done in range(len(new) + 1):
        if done:
            decoder.append(torch.tensor([new[done - 1]] * 2))
        with torch.no_grad():
            expected = model.logits(model(torch.tensor([in_view(prompt, new[:done], CONTEXT)])))[0, -1]
        for row in decoder.logits():
            torch.testing.assert_close(row, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", ["false", "true"])
@pytest.mark.parametrize(("attn", "pos"), EVERY_KIND)
def test_greedy_tokens_do_not_depend_on_the_cache(attn: str, pos: str, qk_norm: str) -> None:
    if attn == "mla" and qk_norm == "true":
        pytest.skip("its latents are normed already")
    norm = [f"model.block.attn.qk_norm={qk_norm}"] if attn != "mla" else []
    model = tiny_model(f"attn={attn}", f"pos={pos}", *norm, "model.tie_embeddings=false", max_seq_len=CONTEXT).eval()
    different = set()
    for length in (1, CONTEXT - 1, CONTEXT, CONTEXT + 1):
        prompt = [(7 * i + length) % 17 for i in range(length)]
        cached, plain = (greedy(model, prompt, kv_cache=kv_cache) for kv_cache in (True, False))
        assert cached == plain
        different |= set(plain)
    assert len(different) > 3  # a model that repeats one token would prove nothing


def greedy(model: torch.nn.Module, prompt: list[int], *, kv_cache: bool, n: int = 3 * CONTEXT) -> list[int]:
    decoder = Decoder(model, [prompt], n_samples=1, max_new_tokens=n, kv_cache=kv_cache)  # type: ignore[arg-type]
    chooser = TokenChooser(Sampling(temperature=0), seed=0, n_samples=1, vocab_size=17)
    return [token for ((_, token),) in decode(decoder, chooser, max_new_tokens=n)]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_tiny_contexts_decode_with_and_without_a_cache(context: int) -> None:
    model = tiny_model(max_seq_len=context).eval()
    assert greedy(model, [1, 2, 3, 4], kv_cache=True) == greedy(model, [1, 2, 3, 4], kv_cache=False)


@pytest.mark.parametrize("kv_cache", [True, False])
def test_model_reads_each_token_once_and_half_the_context_at_each_refill(kv_cache: bool) -> None:
    model = tiny_model(max_seq_len=CONTEXT).eval()
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    greedy(model, [1, 2, 3], kv_cache=kv_cache, n=19)
    views = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 6, 7, 8, 9, 10, 11, 12, 6, 7]
    cached = [
        3,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        5,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        5,
        1,
        1,
    ]  # the new token by itself, as of other rows
    assert read == (cached if kv_cache else views)


def test_cache_is_no_larger_than_needed() -> None:
    model = tiny_model(max_seq_len=CONTEXT)
    assert Decoder(model, [[1, 2]], n_samples=1, max_new_tokens=4, kv_cache=True).cache.max_len == 5
    assert Decoder(model, [[1, 2]], n_samples=1, max_new_tokens=400, kv_cache=True).cache.max_len == CONTEXT


def test_a_cache_in_bf16_under_autocast() -> None:
    model = tiny_model(max_seq_len=CONTEXT).eval()

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    decoder = Decoder(model, [[1, 2]], n_samples=1, max_new_tokens=4, kv_cache=True, autocast=autocast)
    assert decoder.cache.layers[0].buffers[0].dtype == torch.bfloat16
    with torch.no_grad(), autocast():
        expected = model.logits(model(torch.tensor([[1, 2]])))[:, -1]
    torch.testing.assert_close(decoder.logits(), expected)


@pytest.mark.slow
def test_training_continues_after_decoding() -> None:
    """No tensor made without gradients may stay cached in the model."""
    for pos in options("pos"):
        model = tiny_model(f"pos={pos}", max_seq_len=CONTEXT)
        greedy(model, [1, 2], kv_cache=True)
        model.logits(model(torch.tensor([[1, 2, 3]]))).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
