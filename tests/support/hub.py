"""Small transformers models of every family, with random weights far from their initial values."""

import random
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tinyllm

VOCAB = 47
CONTEXT = 48


def quiet() -> None:
    """Turn off the progress bars and the log of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Dice(random.Random):
    """Random choices. The first flags are the bits of the seed, so few seeds cover all combinations."""

    def __init__(self, family: str, seed: int) -> None:
        super().__init__(f"{family}{seed}")
        self._bits = seed

    def flag(self) -> bool:
        self._bits, bit = divmod(self._bits, 2)
        return bool(bit)


ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "beta_fast": 3.0, "truncate": False},
    {"rope_type": "yarn", "factor": 6.0, "mscale": 0.7, "mscale_all_dim": 1.2, "original_max_position_embeddings": 40},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
)


def _shape(rng: Dice, *, free_head: bool = False) -> dict[str, Any]:
    """Sizes that all rotary families share."""
    n_heads = rng.choice((2, 4))
    head_dim = rng.choice((4, 8, 16))
    return {
        "vocab_size": VOCAB,
        "hidden_size": n_heads * head_dim if not free_head else rng.choice((12, 20, 24)),
        "intermediate_size": rng.choice((20, 24, 40)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": n_heads,
        "num_key_value_heads": rng.choice([g for g in (1, 2, 4) if n_heads % g == 0]),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": rng.choice((1e-5, 1e-6)),
        "rope_parameters": rng.choice(ROPES) | {"rope_theta": rng.choice((50.0, 10000.0))},
        "tie_word_embeddings": rng.flag(),
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | ({"head_dim": head_dim} if free_head else {})


def gpt2(rng: Dice) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    n_head = rng.choice((1, 2, 4))
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=n_head * rng.choice((4, 8)),
            n_layer=rng.choice((1, 2, 3)),
            n_head=n_head,
            n_inner=rng.choice((None, 24)),
            activation_function=rng.choice(("gelu_new", "gelu", "relu", "silu")),
            layer_norm_epsilon=rng.choice((1e-5, 1e-6)),
            tie_word_embeddings=rng.flag(),
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def llama(rng: Dice) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    biases = {"attention_bias": rng.flag(), "mlp_bias": rng.flag()}
    head = {"head_dim": rng.choice((None, 6))}
    return LlamaForCausalLM(
        LlamaConfig(**_shape(rng), **biases, **head, hidden_act=rng.choice(("silu", "gelu", "relu")))
    )


def qwen2(rng: Dice) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    window = {"use_sliding_window": rng.flag(), "sliding_window": 7, "max_window_layers": int(rng.flag())}
    return Qwen2ForCausalLM(Qwen2Config(**_shape(rng) | {"num_hidden_layers": 3}, **window))


def smollm3(rng: Dice) -> Any:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    biases = {"attention_bias": rng.flag(), "mlp_bias": rng.flag()}
    window = {"use_sliding_window": rng.flag(), "sliding_window": 7, "no_rope_layer_interval": rng.choice((2, 3))}
    return SmolLM3ForCausalLM(
        SmolLM3Config(**_shape(rng) | {"num_hidden_layers": 3, "pad_token_id": 0}, **biases, **window)
    )


def qwen3(rng: Dice) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    window = {"use_sliding_window": rng.flag(), "sliding_window": 7, "max_window_layers": int(rng.flag())}
    shape = {"attention_bias": rng.flag(), "num_hidden_layers": 3}
    return Qwen3ForCausalLM(Qwen3Config(**_shape(rng, free_head=True) | shape, **window))


def mistral(rng: Dice) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    # Of a window of 1, transformers' cache keeps every key instead of none (5.23), so its own decoding differs from its
    # forward pass.
    window = (None, 16, 5, 2)[2 * rng.flag() + rng.flag()]
    return MistralForCausalLM(MistralConfig(**_shape(rng, free_head=True), sliding_window=window))


def mixtral(rng: Dice) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    window = 6 if rng.flag() else None
    experts = {"num_local_experts": rng.choice((3, 4)), "num_experts_per_tok": rng.choice((1, 2, 3))}
    shape = _shape(rng)
    shape |= {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]}  # which yarn there cannot do without
    return MixtralForCausalLM(MixtralConfig(**shape, **experts, sliding_window=window))


def qwen3_moe(rng: Dice) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {
        "num_experts": rng.choice((3, 5)),
        "num_experts_per_tok": rng.choice((1, 2, 3)),
        "norm_topk_prob": rng.random() < 0.5,
        "moe_intermediate_size": rng.choice((8, 12)),
        "mlp_only_layers": [0] if rng.flag() else [],
        "attention_bias": rng.flag(),
        "use_sliding_window": rng.flag(),
        "sliding_window": 6,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_shape(rng, free_head=True) | {"num_hidden_layers": 3}, **experts))


def _deepseek(rng: Dice) -> dict[str, Any]:
    compressed, biased, dense = rng.flag(), rng.flag(), rng.flag()
    shape = _shape(rng) | {"num_hidden_layers": 3}
    groups = rng.choice((1, 2, 3))
    return shape | {
        "num_key_value_heads": shape["num_attention_heads"],
        "moe_intermediate_size": rng.choice((8, 12)),
        "n_routed_experts": 6,
        "n_shared_experts": rng.choice((1, 2)),
        "num_experts_per_tok": rng.choice((1, 2)),
        "routed_scaling_factor": rng.choice((1.0, 2.5)),
        "kv_lora_rank": rng.choice((8, 12)),
        "q_lora_rank": 10 if compressed else None,
        "attention_bias": compressed and biased,
        "qk_rope_head_dim": rng.choice((4, 8)),
        "qk_nope_head_dim": rng.choice((4, 6)),
        "v_head_dim": rng.choice((4, 10)),
        "n_group": groups,
        "topk_group": rng.choice(range(1, groups + 1)),
        "first_k_dense_replace": (1 if compressed else 3) if dense else 0,
    }


def deepseek_v2(rng: Dice) -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    method = rng.choice(("greedy", "group_limited_greedy"))
    return DeepseekV2ForCausalLM(DeepseekV2Config(**_deepseek(rng), topk_method=method))


def deepseek_v3(rng: Dice) -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    how = {"norm_topk_prob": rng.random() < 0.7, "rope_interleave": rng.random() < 0.7}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**_deepseek(rng), **how))


MAKERS = (gpt2, llama, qwen2, qwen3, mistral, smollm3, mixtral, qwen3_moe, deepseek_v2, deepseek_v3)
FAMILIES = {make.__name__: make for make in MAKERS}


def random_model(family: str, seed: int) -> Any:
    """A model of the family; ``seed`` decides its shape and all weights and buffers."""
    quiet()
    model = FAMILIES[family](Dice(family, seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            scale, middle = (0.3, 1.0) if "norm" in name or "ln_" in name else (0.2, 0.0)
            tensor.copy_(middle + scale * noise if tensor.ndim == 1 else 0.3 * noise)
    return model.eval()


def saved(model: Any, path: Path, **settings: Any) -> Path:
    """Save a model; returns its directory."""
    model.save_pretrained(path, **settings)
    return path


def load(path: Path) -> Any:
    """The tinyllm model of a Hugging Face directory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return tinyllm.load(path)[0]


def ids(*, batch: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    """Random token ids (batch, length)."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model: Any, ids_BT: Tensor) -> Tensor:
    """Logits of a tinyllm or transformers model."""
    return model.logits(model(ids_BT)) if hasattr(model, "head_weight") else model(ids_BT).logits
