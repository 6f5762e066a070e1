"""Frequencies of scaled rotary positions against transformers."""

from typing import Any

import pytest
import torch

from tinyllm.nn.rope import LinearRope, Llama3Rope, NtkRope, YarnRope

CONTEXT, BASE, DIM = 64, 500.0, 16
YARN: dict[str, Any] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "name", "own", "original"),
    [
        (LinearRope, "linear", {"factor": 3.0}, None),
        (NtkRope, "dynamic", {"factor": 2.0}, 16),
        (YarnRope, "yarn", {"factor": 4.0, **YARN}, 24),
        (YarnRope, "yarn", {"factor": 4.0, **YARN, "beta_fast": 2.5, "truncate": False}, 40),
        (YarnRope, "yarn", {"factor": 8.0, **YARN, "attention_factor": 1.5}, 24),
        (YarnRope, "yarn", {"factor": 8.0, **YARN, "mscale": 0.7, "mscale_all_dim": 1.3}, 24),
        (Llama3Rope, "llama3", {"factor": 8.0, **LLAMA3}, 24),
    ],
)
def test_frequencies_equal_those_of_transformers(kind: Any, name: str, own: dict[str, Any], original: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {key: value for key, value in own.items() if value is not None}
    context = original if name == "dynamic" else CONTEXT
    if original and name != "dynamic":
        given["original_max_position_embeddings"] = original
    config = LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=context,
        rope_parameters={"rope_type": name, "rope_theta": BASE, **given},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[name](config, seq_len=CONTEXT)
    rope = kind(max_seq_len=CONTEXT, base=BASE, **own | ({"original_max_seq_len": original} if original else {}))
    found = rope.frequencies(DIM, torch.device("cpu"))
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-7)
    assert rope.table_factor == pytest.approx(factor)
    rotary = rope.rotary(DIM)
    angles = torch.arange(CONTEXT)[:, None] * found
    torch.testing.assert_close(rotary.cos[:, : DIM // 2], (factor * angles.cos()).float(), rtol=1e-5, atol=1e-5)


def test_a_context_that_is_not_extended_keeps_its_base() -> None:
    one, other = (NtkRope(max_seq_len=n, base=BASE, factor=4.0, original_max_seq_len=32) for n in (32, 64))
    plain = LinearRope(max_seq_len=32, base=BASE, factor=1.0).frequencies(DIM, torch.device("cpu"))
    assert torch.equal(one.frequencies(DIM, torch.device("cpu")), plain)
    assert (other.frequencies(DIM, torch.device("cpu"))[1:] < plain[1:]).all()
    assert NtkRope(max_seq_len=64, base=BASE, factor=4.0, original_max_seq_len=None).original_max_seq_len == 16


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        (LinearRope, {"factor": 0.5}, "factor=0.5"),
        (NtkRope, {"factor": 2.0, "original_max_seq_len": 0}, "original_max_seq_len=0"),
        (YarnRope, {"factor": 2.0, "original_max_seq_len": 8, **YARN, "beta_slow": 40.0}, "beta_slow=40.0"),
        (YarnRope, {"factor": 2.0, "original_max_seq_len": 8, **YARN, "mscale": 1.0}, "mscale=1.0"),
        (Llama3Rope, {"factor": 2.0, "original_max_seq_len": 8, **LLAMA3, "low_freq_factor": 4.0}, "low_freq_factor"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: Any, own: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(max_seq_len=16, base=BASE, **own)
    if kind is NtkRope:
        with pytest.raises(ValueError, match="head_dim=2"):
            NtkRope(max_seq_len=16, base=BASE, factor=2.0, original_max_seq_len=8).rotary(2)
