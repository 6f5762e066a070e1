"""Short causal convolutions, alone and in a model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contract.test_documents import IDS, assert_equal_to_each_alone
from tests.contract.test_parts import ALL, EVERYDAY, assert_causal, gradients, losses, tokens
from tests.support.options import CONTEXT, Choice, built, params, small
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Decoder
from tinyllm.models.transformer import Transformer
from tinyllm.nn.short_conv import ShortConv

WIDTH = 4
CHOICES = params(ALL, sorted(EVERYDAY)[::9])
every = pytest.mark.parametrize("choice", CHOICES)
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def with_convolutions(choice: Choice, **changes: Any) -> Transformer:
    """A model whose convolutions are not the identity."""
    model = built(choice, short_conv=WIDTH, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("taps_KC"):
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return model


def convolution(width: int, dim: int) -> ShortConv:
    conv = ShortConv(dim=dim, width=width)
    torch.nn.init.normal_(conv.taps_KC)
    return conv


@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_torchs_depthwise_convolution(length: int) -> None:
    torch.manual_seed(0)
    conv, x_BTC = convolution(WIDTH, 5), torch.randn(2, length, 5)
    kernel_C1K = conv.taps_KC.flip(0).t()[:, None]
    padded_BCT = F.pad(x_BTC.transpose(1, 2), (WIDTH - 1, 0))
    expected = x_BTC + F.conv1d(padded_BCT, kernel_C1K, groups=5).transpose(1, 2)
    torch.testing.assert_close(conv(x_BTC), expected)


def test_starts_as_the_identity_and_without_random_numbers() -> None:
    plain, model = small(), small(short_conv=WIDTH)
    assert torch.equal(model(IDS), plain(IDS))
    loaded = model.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys and all("conv" in name for name in loaded.missing_keys)


@every
def test_outputs_before_a_changed_token_stay(choice: Choice) -> None:
    assert_causal(with_convolutions(choice))


@every
def test_cached_decoding_equals_the_full_forward(choice: Choice) -> None:
    """In pieces shorter and longer than the convolution, from a cache that held another sequence."""
    model, ids = with_convolutions(choice), tokens(2, CONTEXT)
    with torch.no_grad():
        full, cache = model(ids), model.make_cache(2, CONTEXT)
        for sizes in ([CONTEXT], [1] * CONTEXT, [2, 1, 5, 1, 3], [7, 5]):
            cache.reset()
            cached = torch.cat([model(piece, cache=cache) for piece in ids.split(sizes, dim=1)], dim=1)
            torch.testing.assert_close(cached, full, **CLOSE)
        for dtype, length in ((torch.float32, 3), (torch.bfloat16, CONTEXT)):
            assert model.make_cache(3, length, dtype=dtype).nbytes() == 3 * model.cache_bytes(length, dtype)


@every
def test_generation_past_the_context_is_the_same_with_and_without_a_cache(choice: Choice) -> None:
    """Prompts of different lengths, two samples each, of which some end early."""
    model = with_convolutions(choice).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(4)
    generated: list[list[list[int]]] = [[], []]
    for kv_cache in (True, False):
        prompts = [tokens(1).tolist(), tokens(7, seed=2).tolist()]
        decoder = Decoder(model, prompts, n_samples=2, max_new_tokens=CONTEXT + 5, kv_cache=kv_cache)
        for step in range(CONTEXT + 5):
            ids_B = decoder.logits().argmax(-1)
            if step == 4:
                decoder.keep([1, 3])
                ids_B = ids_B[[1, 3]]
            decoder.append(ids_B)
            generated[kv_cache].append(ids_B.tolist())
    assert generated[0] == generated[1]


@every
def test_documents_in_a_row_equal_each_alone(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_to_each_alone(with_convolutions(choice, document_mask=True), monkeypatch)


@every
def test_gradients_reach_every_tap_and_recomputation_keeps_the_bits(choice: Choice) -> None:
    model = with_convolutions(choice)
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for recompute_every in (0, 1):
        model.recompute_every = recompute_every
        loss = losses(model, tokens(2, CONTEXT))
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    (loss, plain), (again, recomputed) = results
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert all(plain[name].any(1).all() for name in plain if name.endswith("taps_KC"))


def test_taps_are_vectors_for_the_optimizer_and_unscaled_under_mup() -> None:
    mup = small("parametrization=mup", "model.parametrization.base_width=16", short_conv=WIDTH)
    names = [name for name, _ in mup.named_parameters() if name.endswith("taps_KC")]
    assert len(names) == 2 * mup.n_layers
    assert {mup.parameter_kinds()[name] for name in names} == {"vector"}
    assert not set(names) & set(mup.matrix_scalings)


def test_one_kind_of_layer_may_have_them() -> None:
    kinds = 'model.layers.kinds={plain:"",mixed:"model.short_conv=3"}'
    model = small("layers=pattern", kinds, "model.layers.pattern=[plain,mixed]")
    assert [block.short_conv for block in model.layers()] == [0, 3]
    ids = tokens(2, CONTEXT)
    cache = model.make_cache(2, CONTEXT)
    cached = torch.cat([model(piece, cache=cache) for piece in ids.split(1, dim=1)], dim=1)
    torch.testing.assert_close(cached, model(ids), **CLOSE)


@pytest.mark.parametrize("width", [1, -2, CONTEXT + 1])
def test_widths_out_of_range_are_refused(width: int) -> None:
    with pytest.raises(UserError, match=f"short_conv={width} is out of range: it must be from 2 to max_seq_len=12"):
        small(short_conv=width)
