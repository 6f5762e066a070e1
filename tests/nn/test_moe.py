"""Mixtures of experts against a loop over tokens and experts, transformers' own, and closed forms."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tinyllm.nn.activations import ACTIVATIONS, GATES
from tinyllm.nn.dispatch import Dispatch
from tinyllm.nn.feedforward import GLU, MLP, FeedForward
from tinyllm.nn.grouped import GroupedLinear, Groups, one_product
from tinyllm.nn.moe import AuxFree, AuxLoss, Mixture

FFN = {"mlp": partial(MLP, activation="gelu", d_ff=None), "glu": partial(GLU, gate="silu", d_ff=None)}
SHAPE = {"d_model": 16, "model_d_ff": 48, "bias": False}
NUMBERS = {"n_experts": 6, "n_shared": 1, "n_active": 3, "expert_d_ff": None, "routed_scale": 1.0}


def aux_loss(ffn: str = "mlp", **changes: Any) -> AuxLoss:
    return filled(AuxLoss(ffn=FFN[ffn], **({"router": "softmax", "coeff": 0.5} | NUMBERS | SHAPE | changes)))


def aux_free(ffn: str = "mlp", **changes: Any) -> AuxFree:
    made = filled(
        AuxFree(ffn=FFN[ffn], **({"router": "sigmoid", "gamma": 0.01, "alpha": 0.5} | NUMBERS | SHAPE | changes))
    )
    made.bias_E.normal_(std=0.3)
    return made


def filled(mixture: Any, *, seed: int = 0) -> Any:
    """Weights and biases that all matter."""
    torch.manual_seed(seed)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return mixture


def one_expert(layer: FeedForward, e: int, x_C: Tensor) -> Tensor:
    """What expert e gives for one token, written out."""
    weights = {name: parameter[e] for name, parameter in layer.named_parameters()}
    return written_out(layer, weights, x_C)


def written_out(layer: FeedForward, weights: dict[str, Tensor], x_C: Tensor) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        y = (weights[f"{name}.weight"] * x).sum(1)
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    if isinstance(layer, MLP):
        return linear("down", ACTIVATIONS["gelu"](linear("up", x_C)))
    gate, up = linear("gate_up", x_C).chunk(2)
    return linear("down", GATES["silu"](gate) * up)


def brute_force(mixture: Mixture, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, balance loss and loads of a mixture, token by token and expert by expert."""
    n_routed, n_chosen = mixture.n_routed, mixture.n_chosen
    out = torch.zeros_like(x_BTC)
    load_E, losses = torch.zeros(n_routed), []
    for b, sequence in enumerate(x_BTC):
        count, share = torch.zeros(n_routed), torch.zeros(n_routed, dtype=x_BTC.dtype)
        for t, token in enumerate(sequence):
            logits = torch.stack([(row * token).sum() for row in mixture.router.weight])
            score = torch.sigmoid(logits) if mixture.score is torch.sigmoid else logits.exp() / logits.exp().sum()
            ranked = (score + mixture.bias_E if isinstance(mixture, AuxFree) else score).tolist()
            chosen = sorted(range(n_routed), key=lambda e, r=ranked: -r[e])[:n_chosen]
            total = sum(score[e] for e in chosen) if n_chosen > 1 else 1.0
            y = sum(score[e] / total * mixture.routed_scale * one_expert(mixture.experts, e, token) for e in chosen)
            if mixture.shared is not None:
                y = y + written_out(mixture.shared, dict(mixture.shared.named_parameters()), token)
            out[b, t] = y
            share = share + score / score.sum()
            count[chosen] += 1
        load_E += count
        f = count * n_routed / (n_chosen * len(sequence))
        losses.append((f * share / len(sequence)).sum())
    return out, mixture.balance_coeff * torch.stack(losses).mean(), load_E


CASES = [
    (make, ffn, {"bias": bias, "router": router, "n_shared": n_shared, "n_active": n_shared + n_chosen} | extra)
    for make, ffn, bias, router, n_shared, n_chosen, extra in [
        *product((aux_loss, aux_free), FFN, (False, True), ("softmax", "sigmoid"), (0, 2), (1, 2), ({},)),
        (aux_loss, "glu", True, "sigmoid", 1, 5, {}),
        (aux_free, "mlp", True, "softmax", 1, 2, {"routed_scale": 2.5, "expert_d_ff": 5}),
    ]
]


@pytest.mark.parametrize(("make", "ffn", "changes"), CASES)
def test_equals_a_loop_over_tokens_and_experts_gradients_too(make: Any, ffn: str, changes: dict[str, Any]) -> None:
    mixture = make(ffn, **changes).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 7, 16, dtype=torch.float64)
    inputs = [x, *mixture.parameters()]

    y, routing = mixture(x)
    got = torch.autograd.grad((y * upstream).sum() + routing.loss, inputs)
    expected_y, loss, load_E = brute_force(mixture, x)
    expected = torch.autograd.grad((expected_y * upstream).sum() + loss, inputs, allow_unused=True)

    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(routing.loss, loss.float())
    assert torch.equal(routing.load_E.float(), load_E) and not routing.load_E.requires_grad
    for parameter, one, other in zip(inputs, got, expected, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(parameter) if other is None else other, rtol=1e-6, atol=1e-8)
