"""Mixtures of experts against a loop over tokens and experts, against transformers, and against closed forms."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tinyllm.nn.expert_dispatch import Dispatch
from tinyllm.nn.feedforward import ACTIVATIONS, GATES, GLU, MLP, FeedForward
from tinyllm.nn.grouped_linear import GroupedLinear, RowGroups, grouped_product
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
    """Random weights and biases, none of them 0."""
    torch.manual_seed(seed)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return mixture


def one_expert(layer: FeedForward, e: int, x_C: Tensor) -> Tensor:
    """Output of expert e for one token, from the formula."""
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
def test_output_and_gradients_equal_a_loop_over_tokens_and_experts(
    make: Any, ffn: str, changes: dict[str, Any]
) -> None:
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
    for parameter, tensor, other in zip(inputs, got, expected, strict=True):
        torch.testing.assert_close(
            tensor, torch.zeros_like(parameter) if other is None else other, rtol=1e-6, atol=1e-8
        )


def test_equals_mixtral_of_transformers() -> None:
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    mixture = aux_loss("glu", n_experts=8, n_shared=0, n_active=2, expert_d_ff=24)
    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2)
    reference = MixtralSparseMoeBlock(config)
    names = {"router.weight": "gate.weight", "experts.gate_up.weight": "experts.gate_up_proj"}
    names["experts.down.weight"] = "experts.down_proj"
    reference.load_state_dict({names[name]: tensor for name, tensor in mixture.state_dict().items()})
    x = torch.randn(3, 9, 16)
    torch.testing.assert_close(mixture(x)[0], reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_active", [2, 5])
def test_equals_deepseek_v3_of_transformers(n_active: int) -> None:
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    mixture = aux_free("glu", n_experts=9, n_shared=1, n_active=1 + n_active, expert_d_ff=24, routed_scale=2.5)
    reference = DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=16,
            moe_intermediate_size=24,
            n_routed_experts=8,
            num_local_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=n_active,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        )
    )
    weights = mixture.state_dict()
    gate, up = weights["shared.gate_up.weight"].chunk(2)
    reference.load_state_dict(
        {
            "gate.weight": weights["router.weight"],
            "gate.e_score_correction_bias": weights["bias_E"],
            "experts.gate_up_proj": weights["experts.gate_up.weight"],
            "experts.down_proj": weights["experts.down.weight"],
            "shared_experts.gate_proj.weight": gate,
            "shared_experts.up_proj.weight": up,
            "shared_experts.down_proj.weight": weights["shared.down.weight"],
        }
    )
    x = torch.randn(3, 9, 16)
    torch.testing.assert_close(mixture(x)[0], reference(x), rtol=1e-5, atol=1e-5)


def test_balance_loss_is_its_coefficient_in_perfect_balance_and_larger_otherwise() -> None:
    """With the identity as router and one-hot tokens, token t goes to expert t mod 4."""
    mixture = aux_loss(n_experts=4, n_shared=0, n_active=1, d_model=4, coeff=0.25)
    with torch.no_grad():
        mixture.router.weight.copy_(50 * torch.eye(4))
    x = torch.eye(4).repeat(3, 1)[None]
    assert float(mixture(x)[1].loss.detach()) == pytest.approx(0.25)
    collapsed = torch.eye(4)[:1].repeat(12, 1)[None]
    assert float(mixture(collapsed)[1].loss.detach()) == pytest.approx(4 * 0.25)
    # The loss is per sequence: two collapsed sequences do not balance each other.
    each = torch.eye(4)[:, None].repeat(1, 12, 1)
    loss, load_E = mixture(each)[1]
    assert float(loss.detach()) == pytest.approx(4 * 0.25) and load_E.tolist() == [12, 12, 12, 12]
    with torch.no_grad():
        mixture.router.weight.zero_()  # all scores 1/4: whichever is chosen, Σ f_i/4 = 1
    assert float(mixture(x)[1].loss.detach()) == pytest.approx(0.25)


def test_bias_changes_the_choice_but_not_the_gates() -> None:
    mixture = aux_free(n_experts=4, n_shared=0, n_active=1)
    x = torch.randn(1, 50, 16)
    mixture.bias_E.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    y, routing = mixture(x)
    assert routing.load_E.tolist() == [0, 0, 50, 0]
    gate = torch.sigmoid(x @ mixture.router.weight[2])
    only = torch.stack([one_expert(mixture.experts, 2, token) for token in x[0]])[None]
    torch.testing.assert_close(y, gate[..., None] * only, rtol=1e-5, atol=1e-5)
    before = mixture.bias_E.clone()
    mixture.balance(torch.tensor([10.0, 20.0, 60.0, 30.0]))  # mean 30
    torch.testing.assert_close(mixture.bias_E - before, torch.tensor([0.01, 0.01, -0.01, 0.0]), rtol=0, atol=1e-6)


def test_forward_changes_no_buffer_and_evaluation_returns_no_routing() -> None:
    mixture = aux_free()
    before = mixture.bias_E.clone()
    x = torch.randn(2, 20, 16)
    trained = mixture(x)[0]
    assert torch.equal(mixture.bias_E, before)
    y, routing = mixture.eval()(x)
    assert routing is None and torch.equal(y, trained)


@pytest.mark.parametrize("make", [aux_loss, aux_free])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recompute_gives_the_same_gradients_and_counts_tokens_once(make: Any, use_reentrant: bool) -> None:
    mixture = make("glu", bias=True)
    x = torch.randn(2, 20, 16, requires_grad=True)
    inputs = [x, *mixture.parameters()]

    def flat(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, routing = mixture(x)
        return y, routing.loss, routing.load_E

    def gradients(y: Tensor, loss: Tensor, load_E: Tensor) -> list[Tensor]:
        for tensor in inputs:
            tensor.grad = None
        (y.square().sum() + loss).backward()
        return [tensor.grad.clone() for tensor in inputs]

    before = [buffer.clone() for buffer in mixture.buffers()]
    plain, recomputed = flat(x), checkpoint(flat, x, use_reentrant=use_reentrant)
    assert torch.equal(plain[2], recomputed[2])
    for tensor, other in zip(gradients(*plain), gradients(*recomputed), strict=True):
        assert torch.equal(tensor, other)
    assert all(torch.equal(tensor, other) for tensor, other in zip(mixture.buffers(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_without_tokens_have_zero_gradients(dtype: torch.dtype) -> None:
    mixture = aux_free("mlp", bias=True, n_shared=0, n_active=2)
    mixture.bias_E.copy_(torch.tensor([9.0, 0, 0, 9.0, 0, 0]))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y, _ = mixture(torch.randn(1, 5, 16))
    y.float().sum().backward()
    for parameter in mixture.experts.parameters():
        used = parameter.grad.flatten(1).any(1)
        assert used.tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize("ffn", FFN)
@pytest.mark.parametrize("make", [aux_loss, aux_free])
def test_bf16_autocast_stays_near_fp32_with_the_same_routing(make: Any, ffn: str) -> None:
    """The router computes in fp32, so every token has the same experts; gradients are fp32."""
    mixture = make(ffn, bias=True)
    x = torch.randn(4, 50, 16, requires_grad=True)
    inputs = [x, *mixture.parameters()]
    exact, routing = mixture(x)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, same = mixture(x)
    got = torch.autograd.grad(rounded.float().square().sum(), inputs)
    assert rounded.dtype == torch.bfloat16 and torch.equal(routing.load_E, same.load_E)
    assert torch.equal(routing.loss, same.loss)
    for tensor, other in zip([rounded.float(), *got], [exact, *expected], strict=True):
        assert tensor.dtype == torch.float32
        assert (tensor - other).norm() / other.norm() < 0.02


@pytest.mark.parametrize("block", [1, 4, 32])
def test_padding_rows_change_nothing(block: int) -> None:
    chosen_NK = torch.tensor([[0, 3], [3, 1], [3, 0], [0, 1], [3, 1]])
    load_E = torch.tensor([3.0, 3, 0, 4])
    dispatch = Dispatch(chosen_NK, load_E, block=block)
    assert dispatch.rows_E.tolist() == [-(-n // block) * block for n in (3, 3, 0, 4)]
    x = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None].requires_grad_()
    gate = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    expert_M1 = torch.arange(4).repeat_interleave(dispatch.rows_E)[:, None] + 1.0
    y = dispatch.combine(dispatch.gather(x) * expert_M1, gate)
    torch.testing.assert_close(y, (gate * (chosen_NK + 1.0) * x).sum(1, keepdim=True))
    assert torch.autograd.gradcheck(
        lambda x, gate: dispatch.combine(dispatch.gather(x) * expert_M1, gate), (x, gate), fast_mode=False
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_equals_one_product_per_expert(dtype: torch.dtype, bias: bool) -> None:
    """The GPU path, run on the CPU, where torch loops over the groups."""
    torch.manual_seed(0)
    groups = RowGroups()
    layer = filled(GroupedLinear(d_in=16, d_out=24, bias=bias, n_experts=4, groups=groups))
    groups.assign(torch.tensor([5, 0, 12, 3]), 20, dtype=dtype)
    x = torch.randn(20, 16, requires_grad=True)
    inputs = [x, *layer.parameters()]
    upstream = torch.randn(20, 24)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        looped = layer(x)
    at_once = grouped_product(x.to(dtype), layer.weight.to(dtype), layer.bias, groups)
    assert at_once.dtype == looped.dtype == dtype
    expected = [looped, *torch.autograd.grad(looped, inputs, upstream.to(dtype))]
    got = [at_once, *torch.autograd.grad(at_once, inputs, upstream.to(dtype))]
    for tensor, other in zip(got, expected, strict=True):
        torch.testing.assert_close(
            tensor, other, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-2 * (dtype != torch.float32) + 1e-5
        )


@pytest.mark.parametrize("make", [aux_loss, aux_free])
@pytest.mark.parametrize(("ffn", "numbers"), [("mlp", (6, 1, 3)), ("glu", (16, 0, 2)), ("glu", (4, 3, 4))])
def test_flops_and_parameters_equal_what_runs(make: Any, ffn: str, numbers: tuple[int, int, int]) -> None:
    n_experts, n_shared, n_active = numbers
    mixture = make(ffn, n_experts=n_experts, n_shared=n_shared, n_active=n_active, model_d_ff=192)
    for device in ("cpu", "meta"):
        mixture.to(device)
        counter = FlopCounterMode(display=False)
        x = torch.randn(3, 7, 16, device=device, requires_grad=True)
        with counter:
            y, routing = mixture(x)
        assert counter.get_total_flops() == 21 * mixture.flops_per_token()
        with counter:
            (y.sum() + routing.loss).backward()
        assert counter.get_total_flops() == 21 * 2 * mixture.flops_per_token()
        assert x.grad is not None and x.grad.shape == x.shape
    total = sum(parameter.numel() for parameter in mixture.parameters())
    per_expert = sum(parameter[0].numel() for parameter in mixture.experts.parameters())
    assert mixture.inactive_parameters() == (n_experts - n_active) * per_expert
    assert total == n_experts * per_expert + mixture.router.weight.numel()


@pytest.mark.parametrize("ffn", FFN)
@pytest.mark.parametrize("d_ff", [512, 1024, 3072, 6400])
@pytest.mark.parametrize("n_active", [2, 3])
def test_active_parameters_equal_those_of_the_dense_layer(ffn: str, d_ff: int, n_active: int) -> None:
    shape = {"d_model": 128, "model_d_ff": d_ff, "bias": False}
    with torch.device("meta"):
        dense = FFN[ffn](**shape)
        mixture = AuxLoss(ffn=FFN[ffn], **NUMBERS | shape | {"n_active": n_active}, router="softmax", coeff=0.01)
    assert mixture.d_ff % 8 == 0 and abs(mixture.d_ff - dense.d_ff / n_active) <= 4
    active = sum(p.numel() for p in mixture.parameters()) - mixture.inactive_parameters()
    attention = 4 * 128 * 128
    blocks = [
        attention + n for n in (active - mixture.router.weight.numel(), sum(p.numel() for p in dense.parameters()))
    ]
    assert blocks[0] / blocks[1] == pytest.approx(1, abs=0.02)


def test_initial_weights_are_those_of_a_dense_layer() -> None:
    torch.manual_seed(0)
    mixture = AuxFree(ffn=FFN["mlp"], **NUMBERS | SHAPE | {"bias": True}, router="sigmoid", gamma=0.1, alpha=0.0)
    mixture.bias_E.fill_(3)
    mixture.init_weights(std=0.02, residual_std=0.005)
    for layer in (mixture.experts, mixture.shared):
        assert float(layer.up.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert float(layer.down.weight.detach().std()) == pytest.approx(0.005, rel=0.1)
        assert not layer.up.bias.any() and not layer.down.bias.any()
    assert float(mixture.router.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert not mixture.bias_E.any()
    assert "bias_E" in mixture.state_dict()


ILLEGAL = [
    ({"n_shared": -1}, "n_shared=-1 must be at least 0"),
    ({"n_shared": 3}, "n_active=3 must be more than n_shared=3"),
    ({"n_experts": 2}, "n_experts=2 must be at least n_active=3"),
    ({"routed_scale": 0.0}, "routed_scale=0.0 must be positive"),
    ({"router": "argmax"}, "router=argmax is not known: choose one of softmax sigmoid"),
    ({"expert_d_ff": 0}, "expert_d_ff=0 must be at least 1"),
    ({"coeff": -1.0}, "coeff=-1.0 must be at least 0"),
]


@pytest.mark.parametrize(("changes", "message"), ILLEGAL)
def test_invalid_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aux_loss(**changes)


def test_invalid_factories_and_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma=-1 must be at least 0"):
        aux_free(gamma=-1)
    with pytest.raises(ValueError, match="alpha=-1 must be at least 0"):
        aux_free(alpha=-1)

    class Fixed(MLP):
        def __init__(self, *, d_model: int, bias: bool, d_ff: int) -> None:
            super().__init__(d_model=d_model, model_d_ff=d_ff, bias=bias, activation="gelu")

    with pytest.raises(ValueError, match=r"ffn=.*Fixed.* cannot be an expert: its constructor has no linear"):
        AuxLoss(ffn=Fixed, **NUMBERS | SHAPE, router="softmax", coeff=0.1)
