"""Decoding steps in C++ against the model's own forward pass."""

import ctypes

import pytest
import torch
from torch import Tensor, nn

from tests.support.kernels import decode_kernels_here
from tests.support.models import tiny_model
from tinyllm.models.transformer import Transformer
from tinyllm.nn import decode_step
from tinyllm.nn.attention.mha import MHA
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.nn.decode_step import CacheOfLayer
from tinyllm.nn.step_recorder import ACTIVATIONS, Op

CONTEXT = 24
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
MODELS = [
    (),
    ("attn=gqa", "ffn=swiglu", "model.block.attn.qk_norm=true", "model.block.attn.window=5"),
    ("attn=mqa", "norm=layernorm", "model.bias=true", "pos=learned", "model.parallel_block=true"),
    ("pos=sinusoidal", "norm=layernorm", "model.block.attn.window=4", "model.block.attn.sinks=2"),
    ("pos=none", "model.tie_embeddings=false", "model.block.attn.head_dim=7"),
    *(("ffn=mlp", f"model.block.ffn.activation={name}") for name in ACTIVATIONS[1:]),
]
FORMS = [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)]


@pytest.fixture(scope="module")
def kernels() -> DecodeKernels:
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("no compiler here")
    return kernels


def inference_model(kernels: DecodeKernels, *chosen: str, dtype: torch.dtype, int8: bool = False) -> Transformer:
    model = tiny_model(*chosen, max_seq_len=CONTEXT).eval()
    model.for_inference(dtype, int8=int8, kernels=kernels)
    model.output_multiplier = 0.5
    return model


def decoded(model: Transformer, prompts: list[list[int]], dtype: torch.dtype, *, steps: int = 12) -> Tensor:
    """(B, steps, V): logits after each step of forced tokens."""
    logits = []
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        cache = model.make_cache(len(prompts), CONTEXT)
        for row, prompt in enumerate(prompts):
            model(torch.tensor([prompt]), cache=cache.rows(row, row + 1))
        for step in range(steps):
            ids_B1 = torch.tensor([[(len(prompt) + 5 * step) % 17] for prompt in prompts])
            logits.append(model.logits(model(ids_B1, cache=cache)).float())
    return torch.cat(logits, 1)


@pytest.mark.every(3)
@pytest.mark.parametrize(("dtype", "int8"), FORMS)
@pytest.mark.parametrize("chosen", MODELS, ids=lambda chosen: " ".join(chosen) or "default")
def test_a_step_has_the_logits_of_the_forward_pass(
    kernels: DecodeKernels, chosen: tuple[str, ...], dtype: torch.dtype, int8: bool
) -> None:
    model = inference_model(kernels, *chosen, dtype=dtype, int8=int8)
    assert model.decode_step is not None
    in_one_call = decoded(model, PROMPTS, dtype)
    model.decode_step = None
    layer_by_layer = decoded(model, PROMPTS, dtype)
    # Both round at the same places; the last bits of norms and activations differ.
    bound = 2e-6 if dtype == torch.float32 else 2.0**-6
    scale = float(layer_by_layer.abs().max())
    torch.testing.assert_close(in_one_call, layer_by_layer, atol=bound * scale, rtol=0)


@pytest.mark.parametrize(("dtype", "int8"), FORMS)
def test_the_bits_of_a_row_depend_neither_on_the_others_nor_on_threads(
    kernels: DecodeKernels, dtype: torch.dtype, int8: bool
) -> None:
    model = inference_model(kernels, *MODELS[1], dtype=dtype, int8=int8)
    together = decoded(model, PROMPTS * 4, dtype)
    for row, prompt in enumerate(PROMPTS):
        alone = decoded(model, [prompt], dtype)
        assert alone[0].equal(together[row]) and alone[0].equal(together[row + 9])
    wide = tiny_model("model.d_ff=9000", max_seq_len=CONTEXT).eval()  # large enough for several threads
    wide.for_inference(dtype, int8=int8, kernels=kernels)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(decoded(wide, PROMPTS, dtype, steps=3))
    finally:
        torch.set_num_threads(threads)
    assert results[0].equal(results[1])


@pytest.mark.parametrize(("dtype", "int8"), FORMS)
@pytest.mark.parametrize("chosen", [MODELS[0], MODELS[2]], ids=["default", "mqa, layernorm, learned positions"])
def test_the_bits_of_a_prompt_do_not_depend_on_how_it_is_read(
    kernels: DecodeKernels, chosen: tuple[str, ...], dtype: torch.dtype, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in pieces, token by token, with the prompts of other rows, and in several calls of C++."""
    model = inference_model(kernels, *chosen, dtype=dtype, int8=int8)
    step = model.decode_step
    assert step is not None
    ids_3T = torch.arange(3 * 20).view(3, 20) * 7 % 17

    def read(cuts: list[int], rows: slice) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            cache = model.make_cache(len(ids_3T[rows]), CONTEXT)
            pieces = [piece for piece in ids_3T[rows].tensor_split(cuts, dim=1)]
            assert all(step.takes(piece, cache) for piece in pieces)
            hidden = torch.cat([model(piece, cache=cache) for piece in pieces], 1)
        assert cache.lengths_B.eq(20).all()
        return hidden, [buffer for layer in cache.layers for buffer in layer.buffers]

    hidden, buffers = read([], slice(0, 3))
    for cuts, first_calls in (([], 512), ([1, 6], 512), (list(range(1, 20)), 512), ([], 7)):
        monkeypatch.setattr(decode_step, "MOST_VECTORS", first_calls)
        for row in range(3):
            alone, its_buffers = read(cuts, slice(row, row + 1))
            assert alone[0].equal(hidden[row])
            assert all(its[0].equal(buffer[row]) for its, buffer in zip(its_buffers, buffers, strict=True))


def test_several_tokens_that_would_overwrite_what_their_window_shows_take_the_forward_pass(
    kernels: DecodeKernels,
) -> None:
    model = inference_model(kernels, *MODELS[3], dtype=torch.float32)  # a window of 4 and 2 sinks: 6 slots
    assert model.decode_step is not None
    with torch.no_grad():
        cache = model.make_cache(1, CONTEXT)
        assert model.decode_step.takes(torch.zeros(1, 6, dtype=torch.int64), cache)
        assert not model.decode_step.takes(torch.zeros(1, 7, dtype=torch.int64), cache)
        model(torch.tensor([[1, 2]]), cache=cache)
        assert not model.decode_step.takes(torch.zeros(1, 5, dtype=torch.int64), cache.rows(0, 1))


def test_rows_of_a_larger_cache_are_written_where_they_are(kernels: DecodeKernels) -> None:
    model = inference_model(kernels, "attn=gqa", dtype=torch.float32)
    with torch.no_grad():
        cache = model.make_cache(4, CONTEXT)
        hidden = [model(torch.tensor([[7]]), cache=rows) for rows in (cache.rows(1, 3).rows(1, 2), cache.rows(0, 1))]
        assert hidden[0].equal(hidden[1])
        assert cache.lengths_B.tolist() == [1, 0, 1, 0]
        for layer in cache.layers:
            for buffer in layer.buffers:
                assert buffer[2].equal(buffer[0]) and buffer[0, :, 0].any()
                assert not buffer[1].any() and not buffer[3].any() and not buffer[0, :, 1:].any()


@pytest.mark.parametrize(
    "chosen",
    [
        ("attn=mla",),
        ("moe=aux_free",),
        ("model.short_conv=3",),
        ("model.block.attn.softcap=5",),
        ("ffn=mlp", "model.block.ffn.activation=mish"),
    ],
)
def test_models_with_other_parts_run_their_forward_pass(kernels: DecodeKernels, chosen: tuple[str, ...]) -> None:
    model = inference_model(kernels, *chosen, dtype=torch.float32)
    assert model.decode_step is None
    assert decoded(model, PROMPTS, torch.float32).isfinite().all()


def test_a_class_that_computes_something_else_than_its_parent_is_not_run_as_its_parent(kernels: DecodeKernels) -> None:
    class Doubled(MHA):
        def forward(self, *args: object, **kwargs: object) -> Tensor:
            return 2 * super().forward(*args, **kwargs)  # type: ignore[arg-type]

    class Renamed(MHA):
        pass

    for kind, is_recorded in ((Doubled, False), (Renamed, True)):
        model = tiny_model(max_seq_len=CONTEXT).eval()
        model.layers()[1].attn.__class__ = kind
        model.for_inference(torch.float32, kernels=kernels)
        assert (model.decode_step is not None) == is_recorded


def test_hooks_are_called(kernels: DecodeKernels) -> None:
    model = tiny_model(max_seq_len=CONTEXT).eval()
    calls: list[nn.Module] = []
    model.layers()[0].norm2.register_forward_hook(lambda module, *_: calls.append(module))
    model.for_inference(torch.float32, kernels=kernels)
    decoded(model, [[1]], torch.float32, steps=2)
    assert len(calls) == 3


def test_wrong_tokens_and_full_caches_are_refused_as_by_the_forward_pass(kernels: DecodeKernels) -> None:
    model = inference_model(kernels, dtype=torch.float32)
    with torch.no_grad():
        cache = model.make_cache(2, 3)
        for ids in ([1, 17], [-1, 1]):
            with pytest.raises(IndexError):
                model(torch.tensor(ids)[:, None], cache=cache)
        assert cache.length == 0 and not any(buffer.any() for layer in cache.layers for buffer in layer.buffers)
        for _ in range(3):
            model(torch.tensor([[1], [2]]), cache=cache)
        with pytest.raises(ValueError, match="4 positions exceed"):
            model(torch.tensor([[1], [2]]), cache=cache)
    ids_B1 = torch.tensor([[1], [2]])
    assert model(ids_B1, cache=model.make_cache(2, 3)).requires_grad  # with gradients, the forward pass runs
    assert model.decode_step is not None
    with torch.no_grad():
        assert not model.decode_step.takes(ids_B1, model.make_cache(2, 3, dtype=torch.bfloat16))
        assert not model.decode_step.takes(ids_B1.expand(2, 4), model.make_cache(2, 3))


def test_structures_have_the_size_that_they_have_in_cpp(kernels: DecodeKernels) -> None:
    assert kernels.structure_sizes == (ctypes.sizeof(Op), ctypes.sizeof(CacheOfLayer))
