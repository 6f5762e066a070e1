"""Whole models against Hugging Face's, with the same weights."""

import pytest
import torch
from torch import Tensor

from tests.support.options import small
from tinyllm.models.transformer import Transformer

transformers = pytest.importorskip("transformers")
IDS = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))
COMMON = {"vocab_size": 31, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_cache": False}


def llama_like(kind: str, model: Transformer, kv_heads: int, **settings: object) -> torch.nn.Module:
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        hidden_size=32,
        intermediate_size=model.layers()[0].ffn.down.in_features,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        max_position_embeddings=12,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        **COMMON,
        **settings,
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    weights: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.embedding.weight,
    }
    for i, block in enumerate(model.layers()):
        at = f"model.layers.{i}."
        q, k, v = block.attn.qkv.weight.split((32, 8 * kv_heads, 8 * kv_heads))
        weights |= {
            f"{at}self_attn.{n}_proj.weight": w for n, w in zip("qkvo", (q, k, v, block.attn.out.weight), strict=True)
        }
        gate, up = block.ffn.gate_up.weight.chunk(2)
        weights |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
        weights |= {f"{at}mlp.down_proj.weight": block.ffn.down.weight}
        weights |= {f"{at}input_layernorm.weight": block.norm1.weight}
        weights |= {f"{at}post_attention_layernorm.weight": block.norm2.weight}
        if block.attn.q_norm is not None:
            weights |= {f"{at}self_attn.q_norm.weight": block.attn.q_norm.weight}
            weights |= {f"{at}self_attn.k_norm.weight": block.attn.k_norm.weight}
    theirs.load_state_dict(weights)
    return theirs


def randomise_norms(model: Transformer) -> Transformer:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("attn", "kv_heads"), [("mha", 4), ("gqa", 2), ("mqa", 1)])
def test_llama(attn: str, kv_heads: int) -> None:
    """RMSNorm, RoPE, SwiGLU and each way of sharing heads."""
    model = randomise_norms(small(f"attn={attn}", "ffn=swiglu"))
    theirs = llama_like("Llama", model, kv_heads)
    torch.testing.assert_close(model.logits(model(IDS)), theirs(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attn", "kv_heads"), [("mha", 4), ("gqa", 2), ("mqa", 1)])
def test_qwen3(attn: str, kv_heads: int) -> None:
    """As Llama, with QK-norm before RoPE."""
    model = randomise_norms(small(f"attn={attn}", "ffn=swiglu", "model.block.attn.qk_norm=true"))
    theirs = llama_like("Qwen3", model, kv_heads)
    torch.testing.assert_close(model.logits(model(IDS)), theirs(IDS).logits, rtol=1e-4, atol=1e-4)


def test_gpt2() -> None:
    """Learned positions, LayerNorm and linear layers with biases, GELU."""
    model = small("pos=learned", "norm=layernorm", "ffn=mlp", "model.block.ffn.activation=gelu_tanh", bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=12, n_embd=32, n_layer=2, n_head=4, n_inner=48, use_cache=False
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    weights: dict[str, Tensor] = {
        "transformer.wte.weight": model.embedding.weight,
        "transformer.wpe.weight": model.pos.table.weight,
        "lm_head.weight": model.embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
    }
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out"}
    names |= {"mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
    for i, block in enumerate(model.layers()):
        for their_name, our_name in names.items():
            part = block.get_submodule(our_name)
            matrix = part.weight.t() if part.weight.ndim == 2 else part.weight  # stored transposed in transformers
            weights |= {
                f"transformer.h.{i}.{their_name}.weight": matrix,
                f"transformer.h.{i}.{their_name}.bias": part.bias,
            }
    theirs.load_state_dict(weights)
    torch.testing.assert_close(model.logits(model(IDS)), theirs(IDS).logits, rtol=1e-4, atol=1e-4)
