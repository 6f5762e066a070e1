"""The norms against torch's own and against float64."""

import pytest
import torch
import torch.nn.functional as F

from tinyllm.nn.norm import LayerNorm, RMSNorm


@pytest.mark.parametrize("shape", [(3, 5, 16), (16,), (2, 3, 4, 16)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rmsnorm_output_and_gradients(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(dim=16, eps=eps)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(shape)
    exact = x.detach().double().requires_grad_()
    weight = norm.weight.detach().double().requires_grad_()
    expected = F.rms_norm(exact, (16,), weight, eps)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)
    expected_grads = torch.autograd.grad(expected, (exact, weight), upstream.double())
    found = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    for tensor, other in zip(found, expected_grads, strict=True):
        torch.testing.assert_close(tensor.double(), other, rtol=1e-5, atol=1e-5)


def test_rmsnorm_returns_the_dtype_of_autocast() -> None:
    norm = RMSNorm(dim=16, eps=1e-5)
    x = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x).bfloat16())  # computed in fp32, rounded once
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_rmsnorm_of_strided_heads() -> None:
    norm = RMSNorm(dim=8, eps=1e-5)
    heads = torch.randn(2, 5, 3 * 4, 8)[:, :, 4:8].requires_grad_()
    torch.testing.assert_close(norm(heads), F.rms_norm(heads, (8,), None, 1e-5))
    gradients = torch.autograd.grad(norm(heads).square().sum(), heads)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(F.rms_norm(heads, (8,), None, 1e-5).square().sum(), heads)
    )


@pytest.mark.parametrize("bias", [False, True])
def test_layernorm_equals_torch(bias: bool) -> None:
    norm = LayerNorm(dim=16, eps=1e-5, bias=bias)
    x = torch.randn(4, 16)
    own = torch.nn.LayerNorm(16, eps=1e-5)
    assert (norm.bias is not None) == bias
    torch.testing.assert_close(norm(x), own(x))


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_eps_must_be_positive(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps={eps}"):
        RMSNorm(dim=4, eps=eps)
