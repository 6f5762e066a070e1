"""The contract of every attention × position × window × feed-forward × mixture × norm found in ``conf/``."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.support.options import (
    CONTEXT,
    VOCABULARY,
    Choice,
    built,
    combinations_of_all,
    everyday,
    pairs,
    params,
    shared,
    without_similar,
)
from tinyllm.inference.decoding import Decoder
from tinyllm.models.transformer import Transformer
from tinyllm.nn.loss import linear_cross_entropy

ALL = combinations_of_all()
EVERYDAY = everyday(ALL)
COMBINATIONS = params(ALL, EVERYDAY)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
every = pytest.mark.parametrize("choice", COMBINATIONS)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def groups_tokens(model: Transformer) -> bool:
    """Whether sizes of matrix products, and so the last bits, depend on the routing of other tokens."""
    return any(block.ffn.inactive_parameters() for block in model.layers())


def losses(model: Transformer, ids_BT: Tensor) -> Tensor:
    """Cross-entropy with each token as its own target, plus the balance losses."""
    hidden, routings = model.forward_with_routing(ids_BT)
    balance = sum((routing.loss for routing in routings if routing is not None), torch.zeros(()))
    return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, ids_BT.flatten()) + balance


def gradients(model: Transformer) -> dict[str, Tensor]:
    """Take the gradients from the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_everyday_choices_cover_every_pair() -> None:
    wanted = without_similar(ALL)
    assert {choice[:3] for choice in EVERYDAY} == {choice[:3] for choice in wanted}
    assert set().union(*map(pairs, EVERYDAY)) == set().union(*map(pairs, wanted))


def assert_causal(model: Transformer) -> None:
    """Outputs before a changed token keep every bit, unless tokens are grouped into shared products."""
    ids = tokens(2, CONTEXT)
    with torch.no_grad():
        before = model(ids)
        for changed in (1, 6, CONTEXT - 1):
            other = ids.clone()
            other[:, changed] = (other[:, changed] + 1) % VOCABULARY
            after = model(other)
            if groups_tokens(model):
                torch.testing.assert_close(after[:, :changed], before[:, :changed], **CLOSE)
            else:
                assert torch.equal(after[:, :changed], before[:, :changed])
            assert not torch.allclose(after[:, changed], before[:, changed])


@every
def test_causal(choice: Choice) -> None:
    assert_causal(shared(choice))


@every
def test_cached_decoding_equals_the_full_forward(choice: Choice) -> None:
    """After a prefill of any length, past the window, up to the end of the context."""
    model = shared(choice)
    ids = tokens(2, CONTEXT)
    with torch.no_grad():
        full = model(ids)
        cache = model.make_cache(2, CONTEXT)
        for prefill in range(CONTEXT + 1):
            cache.reset()
            pieces = [*ids.split([prefill, *[1] * (CONTEXT - prefill)], dim=1)]
            if prefill == 0:
                pieces = pieces[1:]
            cached = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
            assert cache.length == CONTEXT
            torch.testing.assert_close(cached, full, **CLOSE)
        cache.reset()
        torch.testing.assert_close(
            torch.cat([model(piece, cache=cache) for piece in ids.split(7, 1)], 1), full, **CLOSE
        )


@every
def test_generation_past_the_context_is_the_same_with_and_without_a_cache(choice: Choice) -> None:
    model = built(choice).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(4)  # without this, many models repeat one token forever
    generated: list[list[list[int]]] = [[], []]
    for kv_cache in (True, False):  # two prompts of different lengths, each greedily
        prompts = [tokens(3).tolist(), tokens(7, seed=2).tolist()]
        decoder = Decoder(model, prompts, n_samples=1, max_new_tokens=CONTEXT + 5, kv_cache=kv_cache)
        for _ in range(CONTEXT + 5):
            ids_B = decoder.logits().argmax(-1)
            decoder.append(ids_B)
            generated[kv_cache].append(ids_B.tolist())
    assert generated[0] == generated[1]


@every
def test_gradients_reach_every_parameter(choice: Choice) -> None:
    model = shared(choice)
    losses(model, tokens(6, CONTEXT)).backward()
    found = gradients(model)
    for name, _ in model.named_parameters():
        assert name in found, name
        assert found[name].isfinite().all() and found[name].any(), name


@every
def test_activation_checkpointing_gives_the_same_bits(choice: Choice) -> None:
    """Loss, balance loss and gradients, with dropout, when every block is recomputed."""
    model = built(choice, dropout=0.1, attn_dropout=0.1)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for recompute in (False, True):
        if recompute:
            for block in model.layers():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        torch.manual_seed(3)
        loss = losses(model, tokens(2, CONTEXT))
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    (loss, plain), (again, recomputed) = results
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@every
def test_state_dict_round_trip(choice: Choice) -> None:
    """Loading a state dict into a model materialised from the meta device gives the same model."""
    one = shared(choice)
    with torch.device("meta"):
        empty = built(choice, seed=1)
    empty = empty.to_empty(device="cpu")
    empty.init_weights()
    ids = tokens(1, CONTEXT)
    with torch.no_grad():
        assert not torch.equal(one(ids), empty(ids))
        empty.load_state_dict(one.state_dict())
        assert torch.equal(one(ids), empty(ids))
    persistent = {name for name, _ in one.named_parameters(remove_duplicate=False)}
    persistent |= {name for name, _ in one.named_buffers() if name.endswith("bias_E")}
    assert set(one.state_dict()) == persistent


@every
def test_same_seed_same_weights(choice: Choice) -> None:
    other = built(choice)
    assert all(torch.equal(a, b) for a, b in zip(shared(choice).parameters(), other.parameters(), strict=True))


@every
def test_flops_equal_torchs_count(choice: Choice) -> None:
    """For a sequence and for one decoded token; blocks of windowed attention compute more than is counted."""
    model = shared(choice)
    # torch does not count the fused CPU attention kernel, so use the one made of matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        whole, one = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with whole:
            model.logits(model(tokens(3, CONTEXT)))
        cache = model.make_cache(3, CONTEXT)
        model(tokens(3, CONTEXT - 1), cache=cache)
        with one:
            model.logits(model(tokens(3, 1), cache=cache))
    accounted = 3 * CONTEXT * model.flops_per_token(CONTEXT)
    if choice.window:
        unlimited = shared(choice._replace(window=0))
        assert accounted <= whole.get_total_flops() <= 3 * CONTEXT * unlimited.flops_per_token(CONTEXT)
        assert accounted < 3 * CONTEXT * unlimited.flops_per_token(CONTEXT)
    else:
        assert whole.get_total_flops() == accounted
    assert one.get_total_flops() == 3 * model.decode_flops_per_token(CONTEXT)


@every
def test_cache_bytes_equal_the_size_of_the_buffers(choice: Choice) -> None:
    model = shared(choice)
    for dtype, length in ((torch.float32, 3), (torch.bfloat16, CONTEXT)):
        cache = model.make_cache(3, length, dtype=dtype)
        held = sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers)
        assert held == cache.nbytes() == 3 * model.cache_bytes(length, dtype)
        slots = min(length, choice.window or length)
        assert held == 3 * slots * model.cache_bytes_per_token(dtype)


COMPILED = [choice for choice in EVERYDAY if choice.pos == "rope"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("choice", params(sorted(EVERYDAY), sorted(COMPILED)[::8]))
def test_compiled_with_the_eager_backend(choice: Choice) -> None:
    _compiled(choice, "aot_eager")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("choice", params(sorted(COMPILED), sorted(one for one in COMPILED if one.moe == "none")[:1]))
def test_compiled_with_inductor(choice: Choice) -> None:
    _compiled(choice, "inductor")


def _compiled(choice: Choice, backend: str) -> None:
    """Loss and gradients of the compiled model equal those of the plain one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = built(choice)
    ids = tokens(2, CONTEXT)
    loss = losses(model, ids)
    loss.backward()
    expected = gradients(model)
    for block in model.layers():
        block.compile(backend=backend)
    again = losses(model, ids)
    again.backward()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    for name, grad in gradients(model).items():
        assert (grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


ATTENTION: list[Any] = params(
    [Choice(*one) for one in dict.fromkeys((*c[:3], *min(ALL)[3:]) for c in ALL)],
    [Choice(*c[:3], *min(ALL)[3:]) for c in EVERYDAY if not c.window],
)
"""Each attention with each position and window; the first option of everything else."""


@pytest.mark.parametrize("choice", ATTENTION)
@pytest.mark.parametrize(
    "variant", [{"parallel_block": True}, {"bias": True}, {"tie_embeddings": False}], ids=lambda v: next(iter(v))
)
def test_block_variants_decode_and_train(choice: Choice, variant: dict[str, bool]) -> None:
    model = built(choice, **variant)
    ids = tokens(2, CONTEXT)
    full = model(ids)
    cache = model.make_cache(2, CONTEXT)
    cached = torch.cat([model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)], dim=1)
    torch.testing.assert_close(cached, full, **CLOSE)
    losses(model, ids).backward()
    # A bias of the keys adds the same to all scores of a query, so its gradient may be 0 with pos=none.
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("choice", ATTENTION)
def test_bf16_autocast_stays_near_fp32(choice: Choice) -> None:
    model = built(choice._replace(moe="none"), init_std=0.05)  # rounding may send a token to another expert
    ids = tokens(2, CONTEXT)
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids)
        cache = model.make_cache(2, CONTEXT)
        cached = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(CONTEXT)], dim=1)
    for other in (rounded, cached):
        assert (other.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("choice", ATTENTION)
def test_beyond_the_context_is_an_error(choice: Choice) -> None:
    model = shared(choice)
    with pytest.raises(ValueError, match=f"max_seq_len={CONTEXT}"):
        model(tokens(1, CONTEXT + 1))
    cache = model.make_cache(1, CONTEXT)
    model(tokens(1, CONTEXT), cache=cache)
    with pytest.raises(ValueError, match=f"max_seq_len={CONTEXT}"):
        model(tokens(1, 1), cache=cache)


@pytest.mark.parametrize("choice", ATTENTION)
def test_dropout_acts_only_in_training(choice: Choice) -> None:
    for changes in ({"dropout": 0.5}, {"attn_dropout": 0.5}):
        model = built(choice, **changes)
        ids = tokens(2, CONTEXT)
        assert not torch.equal(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))
