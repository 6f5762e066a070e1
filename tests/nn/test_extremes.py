"""Numerical extremes: no division by 0, no root or logarithm of 0, no overflow."""

import pytest
import torch

from tests.nn.test_moe import aux_free, aux_loss
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.feedforward import ACTIVATIONS
from tinyllm.nn.loss import lm_head_loss
from tinyllm.nn.norm import LayerNorm, RMSNorm
from tinyllm.nn.position import Rope
from tinyllm.optim.schedules import SHAPES, WSD, Cosine, Linear
from tinyllm.training.objectives.base import Loss

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("logit", [-50.0, -100.0, -1e4, 100.0, 1e4])
@pytest.mark.parametrize("coeff", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["aux_free", "aux_loss"])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_saturated_router_is_finite(router: str, kind: str, coeff: float, logit: float) -> None:
    """Output, balance loss and every gradient are finite when all scores round to 0 or to 1."""
    made = aux_free(router=router, alpha=coeff) if kind == "aux_free" else aux_loss(router=router, coeff=coeff)
    with torch.no_grad():
        made.router.weight.fill_(logit / 16)
    x = torch.ones(2, 5, 16, requires_grad=True)
    y, routing = made.train()(x)
    assert routing is not None
    (1e6 * y.sum() + routing.loss).backward()
    assert routing.loss.isfinite() and (coeff or routing.loss == 0)
    for tensor in (y, x.grad, *(parameter.grad for parameter in made.parameters())):
        assert tensor is not None and tensor.isfinite().all()


@pytest.mark.parametrize("gap", [1.0, 9.0, 11.0, 14.0, 16.5, 17.5, 30.0, 90.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_loss_of_unlikely_targets_is_exact(dtype: torch.dtype, gap: float) -> None:
    """The target's logit is ``gap`` below a different one, so that its probability may underflow."""
    hidden = torch.eye(4, requires_grad=True)
    weight = torch.zeros(40, 4)
    weight[0], weight[1] = gap, 1e-3
    with torch.no_grad():
        weight[2] = torch.tensor([-3.0, 3.0, 0.5, 0.0])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = lm_head_loss(hidden, weight.requires_grad_(), torch.full((4,), 1)).nats
        with torch.no_grad():
            exact = lm_head_loss(hidden, weight, torch.full((4,), 1)).nats
    assert float(found) / 4 == pytest.approx(float(exact) / 4, abs=2.1e-3)


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3)])
@pytest.mark.parametrize("grad", [True, False])
def test_loss_of_no_tokens_is_zero(grad: bool, smoothing: float, z: float) -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=grad), torch.ones(9, 4, requires_grad=grad)
    found = lm_head_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), label_smoothing=smoothing, z_loss=z)
    assert [float(part.detach()) for part in found] == [0.0] * 4
    if grad:
        found.total.backward()
        assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("grad", [True, False])
def test_disabled_parts_of_the_loss_cannot_make_it_nan(grad: bool) -> None:
    """0 times an overflowing square would be NaN, so a disabled z-loss or smoothing is not computed."""
    weight = torch.zeros(3, 2, requires_grad=grad)
    hidden = torch.full((1, 2), 1e20, requires_grad=grad)
    with torch.no_grad():
        weight[0] = 1.0
    target = torch.zeros(1, dtype=torch.int64)
    smoothed = lm_head_loss(hidden, weight, target, label_smoothing=0.1)
    assert smoothed.z == 0 and smoothed.total.isfinite()


@pytest.mark.parametrize("eps", [1e-20, 1e-8, 1e-5])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-15, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_of_tiny_and_huge_inputs_are_finite(kind: str, dtype: torch.dtype, size: float, eps: float) -> None:
    norm = RMSNorm(dim=8, eps=eps) if kind == "rmsnorm" else LayerNorm(dim=8, eps=eps, bias=True)
    x = (size * torch.linspace(-1, 1, 24).view(3, 8)).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    for given in (x, x.detach()[:0].requires_grad_()):
        y = norm(given)
        y.float().sum().backward()
        assert y.isfinite().all() and y.shape == given.shape
        for tensor in (given.grad, norm.weight.grad):
            assert tensor is not None and not tensor.isnan().any()


@pytest.mark.parametrize("eps", [0.0, -1.0, 1e-30, 1e-50])
def test_eps_too_small_for_fp32_is_refused(eps: float) -> None:
    for make_norm in (lambda: RMSNorm(dim=8, eps=eps), lambda: LayerNorm(dim=8, eps=eps, bias=False)):
        with pytest.raises(ValueError, match=r"eps=.* must be at least 1e-20"):
            make_norm()


@pytest.mark.parametrize("base", [1e-30, 0.5, 1.0, 1e4, 1e300])
def test_angles_are_finite_or_the_base_is_refused(base: float) -> None:
    for dim in (2, 64):
        rotary = Rope(max_seq_len=128, base=base).rotary(dim)
        assert all(buffer.isfinite().all() for buffer in rotary.buffers())
    with pytest.raises(ValueError, match="base=1e-300 is too small"):
        Rope(max_seq_len=128, base=1e-300).rotary(64)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_activations_of_huge_inputs_are_finite(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([-6e4, -100.0, -1e-7, 0.0, 1e-7, 100.0, 6e4], dtype=dtype, requires_grad=True)
    y = ACTIVATIONS[name](x)
    y.float().sum().backward()
    assert x.grad is not None and not y.isnan().any() and not x.grad.isnan().any()


@pytest.mark.parametrize("n_steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("lr", [0.0, 5e-324, 1e-3, 1e300])
def test_schedules_of_any_length_are_finite(n_steps: int, lr: float) -> None:
    wsd = {"decay_steps": 1, "stable_steps": None}
    for warmup in {0, 0.5, n_steps - 1}:
        common = {"lr": lr, "n_steps": n_steps, "warmup_steps": warmup, "min_lr": None}
        plans = [Cosine(**common), Linear(**common), *(WSD(**common, **wsd, shape=shape) for shape in SHAPES)]
        rates = [plan(step) for plan in plans for step in (0, n_steps // 2, n_steps - 1, n_steps + 5)]
        assert all(0 <= rate <= lr for rate in rates)


def test_softcap_near_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="softcap=1e-40 is too small"):
        AttentionMask(softcap=1e-40)


def test_a_step_without_targets_has_no_loss() -> None:
    nothing = torch.zeros((), requires_grad=True)
    assert Loss(nothing, {"train/loss": nothing}).share_of_step(weight=0, fraction=1.0) == 0
