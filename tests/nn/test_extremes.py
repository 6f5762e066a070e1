"""Numbers at the ends of their formats: no division by 0, no root or logarithm of nothing, no overflow in between."""

import pytest
import torch

from tests.nn.test_moe import aux_free, aux_loss
from tinyllm.nn.loss import head_loss

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("logit", [-50.0, -100.0, -1e4, 100.0, 1e4])
@pytest.mark.parametrize("coeff", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["aux_free", "aux_loss"])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_a_router_that_is_sure(router: str, kind: str, coeff: float, logit: float) -> None:
    """Value, balance loss and every gradient are finite where all scores round to 0, or all to 1."""
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
def test_the_loss_of_unlikely_targets(dtype: torch.dtype, gap: float) -> None:
    """The target's logit is ``gap`` below another one, its probability perhaps no number of the format any more."""
    hidden = torch.eye(4, requires_grad=True)
    weight = torch.zeros(40, 4)
    weight[0], weight[1] = gap, 1e-3
    with torch.no_grad():
        weight[2] = torch.tensor([-3.0, 3.0, 0.5, 0.0])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = head_loss(hidden, weight.requires_grad_(), torch.full((4,), 1)).nats
        with torch.no_grad():
            exact = head_loss(hidden, weight, torch.full((4,), 1)).nats
    assert float(found) / 4 == pytest.approx(float(exact) / 4, abs=2.1e-3)


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3)])
@pytest.mark.parametrize("grad", [True, False])
def test_no_tokens(grad: bool, smoothing: float, z: float) -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=grad), torch.ones(9, 4, requires_grad=grad)
    found = head_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), label_smoothing=smoothing, z_loss=z)
    assert [float(part.detach()) for part in found] == [0.0] * 4
    if grad:
        found.total.backward()
        assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_off_cannot_spoil_what_is_on(grad: bool) -> None:
    """A square beyond fp32 times a factor of 0 is no number; z and smoothing that are off are not computed."""
    weight = torch.zeros(3, 2, requires_grad=grad)
    hidden = torch.full((1, 2), 1e20, requires_grad=grad)
    with torch.no_grad():
        weight[0] = 1.0
    target = torch.zeros(1, dtype=torch.int64)
    smoothed = head_loss(hidden, weight, target, label_smoothing=0.1)
    assert smoothed.z == 0 and smoothed.total.isfinite()
