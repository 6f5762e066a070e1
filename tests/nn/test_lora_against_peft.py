"""Our adapters equal those of PEFT on the same layers: outputs, gradients, merged weights and initialization."""

import math
import warnings
from typing import Any

import pytest
import torch

from tests.support.options import CONTEXT, VOCABULARY, small
from tinyllm.nn.lora import LoRA, LoRALinear, merged

IDS = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
TARGETS = {"mha": ["qkv", "out", "gate_up", "down", "head"], "mla": ["kv_down", "kv_up", "out", "gate_up", "down"]}


@pytest.mark.slow
@pytest.mark.parametrize("attn", TARGETS)
def test_outputs_gradients_and_merged_weights_equal_pefts(attn: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
    settings = (f"attn={attn}", "ffn=swiglu", "model.bias=true", "model.tie_embeddings=false")
    ours, theirs = (small(*settings, init_std=0.1).eval() for _ in range(2))
    LoRA(rank=4, alpha=6.0, dropout=0.0, targets=TARGETS[attn]).attach(ours, seed=0)
    config = peft.LoraConfig(r=4, lora_alpha=6.0, lora_dropout=0.0, target_modules=TARGETS[attn], bias="none")
    peft.inject_adapter_in_model(config, theirs)
    pairs: list[tuple[str, LoRALinear, Any]] = [
        (name, layer, theirs.get_submodule(name))
        for name, layer in ours.named_modules()
        if isinstance(layer, LoRALinear)
    ]
    assert len(pairs) == sum(name.endswith("lora_A.default.weight") for name, _ in theirs.named_parameters()) > 8
    with torch.no_grad():
        for name, mine, his in pairs:
            bound = mine.in_features**-0.5
            for drawn in (mine.lora_a, his.lora_A["default"].weight):  # both uniform in ±1/√d_in
                assert drawn.abs().max() <= bound
                assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)
            assert not mine.lora_b.any() and not his.lora_B["default"].weight.any()
            mine.lora_b.copy_(torch.randn(mine.lora_b.shape, generator=torch.Generator().manual_seed(len(name))))
            his.lora_A["default"].weight.copy_(mine.lora_a)
            his.lora_B["default"].weight.copy_(mine.lora_b)
    one, other = (model.logits(model(IDS)) for model in (ours, theirs))
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()
    one.square().mean().backward()
    other.square().mean().backward()
    for name, mine, his in pairs:
        for gradient, expected in (
            (mine.lora_a.grad, his.lora_A["default"].weight.grad),
            (mine.lora_b.grad, his.lora_B["default"].weight.grad),
        ):
            assert gradient is not None and (gradient - expected).norm() <= 1e-5 * expected.norm(), name
        whole = merged(mine.weight, mine.lora_a, mine.lora_b, scale=mine.scale)
        his.merge()
        assert (whole - his.base_layer.weight).abs().max() <= 1e-6 * whole.abs().max()
