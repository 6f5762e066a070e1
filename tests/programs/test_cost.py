"""The cost of compositions against closed forms, describe, and built models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tinyllm
from tests.support.options import distinct
from tinyllm.errors import UserError
from tinyllm.programs import describe
from tinyllm.programs.builders import build_model
from tinyllm.programs.cost import model_cost, vocabulary

VOCABULARY = 50


def test_the_cost_of_nano_matches_the_closed_form() -> None:
    found = model_cost(tinyllm.compose("model=nano"), vocab_size=VOCABULARY)
    d, layers, ff, context = 128, 4, 512, 128
    matrices = layers * (4 * d * d + 2 * d * ff)
    assert found.parameters == found.active_parameters == VOCABULARY * d + matrices + layers * 2 * d + d
    forward = 2 * (matrices + VOCABULARY * d) + layers * 4 * context * d
    assert found.flops_per_token == 3 * forward
    assert found.decode_flops_per_token == forward
    assert found.kv_bytes_per_token == layers * 2 * d * 2


def test_inactive_experts_count_only_in_the_total() -> None:
    found = model_cost(tinyllm.compose("moe=aux_free"), vocab_size=VOCABULARY)
    one_expert = 2 * 128 * 168  # 512 / 3 to the nearest multiple of 8
    assert found.parameters - found.active_parameters == 4 * 5 * one_expert


def test_seq_len_changes_training_flops_and_not_decode_flops() -> None:
    whole = model_cost(tinyllm.compose("model=nano"), vocab_size=VOCABULARY)
    half = model_cost(tinyllm.compose("model=nano", "trainer.seq_len=64"), vocab_size=VOCABULARY)
    assert whole.flops_per_token - half.flops_per_token == 3 * 4 * 4 * 64 * 128
    assert whole.decode_flops_per_token == half.decode_flops_per_token


@pytest.mark.parametrize(
    "choices", [("attn=mla", "moe=aux_loss", "lora=lora"), ("attn=gqa", "ffn=swiglu", "trainer.seq_len=32")]
)
def test_describe_shows_the_same_cost(choices: tuple[str, ...]) -> None:
    cfg = tinyllm.compose("model=tiny", "model.vocab_size=300", "tokenizer=char", *choices)
    figures, _ = describe.figures_of(cfg)
    found = model_cost(cfg, vocab_size=VOCABULARY)
    assert figures["parameters"]["total"] == found.parameters
    assert figures["parameters"]["active per token"] == found.active_parameters
    assert figures["FLOPs per token"]["train"] == found.flops_per_token
    assert figures["FLOPs per token"]["decode"] == found.decode_flops_per_token
    assert figures["KV cache, bytes"]["per token, bf16"] == found.kv_bytes_per_token


@pytest.mark.parametrize("attn", distinct("attn"))
def test_the_cost_matches_a_built_model(attn: str) -> None:
    cfg = tinyllm.compose(
        "model.d_model=32", "model.n_layers=2", "model.max_seq_len=16", f"attn={attn}", "moe=aux_free"
    )
    found = model_cost(cfg, vocab_size=VOCABULARY)
    build = {"vocab_size": VOCABULARY, "seed": 0, "allow": frozenset()}
    model = build_model(cfg, device=torch.device("cpu"), **build)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(model(torch.zeros(3, 16, dtype=torch.int64)))
    assert 3 * counter.get_total_flops() == 3 * 16 * found.flops_per_token
    cache = model.make_cache(1, 10, dtype=torch.bfloat16)
    held = sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers)
    assert held == 10 * found.kv_bytes_per_token


def test_sizes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match="not divisible by n_heads=3"):
        model_cost(tinyllm.compose("model.n_heads=3"), vocab_size=VOCABULARY)


def test_the_vocabulary_is_read_from_the_settings() -> None:
    assert vocabulary(tinyllm.compose("model.vocab_size=77")) == (77, [])
    assert vocabulary(tinyllm.compose("tokenizer=bpe", "tokenizer.vocab_size=500")) == (500, [])
    assert model_cost(tinyllm.compose("model.vocab_size=77"), vocab_size=20) == model_cost(
        tinyllm.compose(), vocab_size=77
    )
