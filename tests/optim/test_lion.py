"""Lion against its formula."""

import pytest
import torch

from tinyllm.optim.lion import Lion


def test_update_equals_the_paper() -> None:
    torch.manual_seed(0)
    lr, b1, b2, decay = 1e-2, 0.9, 0.99, 0.3
    weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    expected, m = weight.detach().clone(), torch.zeros(5, 3, dtype=torch.float64)
    optimizer = Lion([{"params": [weight]}], lr=lr, betas=(b1, b2), weight_decay=decay)
    for _ in range(10):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        expected = expected - lr * (torch.sign(b1 * m + (1 - b1) * gradient) + decay * expected)
        m = b2 * m + (1 - b2) * gradient
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_momentum_decays_with_beta2_only() -> None:
    """After 50 unit gradients m = 1 − 0.99⁵⁰ = 0.395; with both rates applied in place it would be 0.997."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer = Lion([{"params": [weight]}], lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(50):
        weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert float(optimizer.state[weight]["m"]) == pytest.approx(1 - 0.99**50, rel=1e-5)
    assert round(1 - 0.99**50, 3) == 0.395


def test_a_parameter_without_gradient_is_unchanged() -> None:
    with_gradient, without = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Lion([{"params": [with_gradient, without]}], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    with_gradient.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(without, torch.ones(2, 2))
    assert torch.allclose(with_gradient, torch.full((2, 2), 1 - 0.1 * 1.1))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    right = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Lion([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}], **right | wrong)  # type: ignore[arg-type]
