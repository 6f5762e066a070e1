"""The chunked head and loss against torch's cross-entropy of all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tinyllm.nn import loss as module
from tinyllm.nn.loss import linear_cross_entropy, lm_head_loss


def example(n: int = 23, dim: int = 8, vocab: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(n, dim, requires_grad=True)
    weight = torch.randn(vocab, dim, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (n,))


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).double(), targets, reduction="sum")


@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 100])
@pytest.mark.parametrize("ignored", [[], [0], [3, 22], list(range(23))], ids=str)
def test_loss_and_gradients_equal_torch(chunk: int | None, ignored: list[int]) -> None:
    hidden, weight, targets = example()
    targets[ignored] = -100
    expected = plain(hidden, weight, targets)
    actual = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk)
    assert actual.dtype == torch.float32 and actual.ndim == 0
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    expected_grads = torch.autograd.grad(expected / 7, (hidden, weight))
    found = torch.autograd.grad(actual / 7, (hidden, weight))
    torch.testing.assert_close(found, expected_grads, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_costs_no_gradient_of_its_own() -> None:
    """The loss and the gradient of the hidden states keep their bits; one of the three products is left out."""
    results, flops = [], []
    for frozen in (False, True):
        hidden, weight, targets = example()
        weight.requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            value = linear_cross_entropy(hidden, weight, targets, chunk_tokens=5)
            value.backward()
        assert hidden.grad is not None and (weight.grad is None) == frozen
        results.append((value.detach(), hidden.grad))
        flops.append(counter.get_total_flops())
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert flops[1] * 3 == flops[0] * 2


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize(("smoothing", "z"), [(0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_smoothing_and_z_loss_equal_the_formulas(chunk: int | None, smoothing: float, z: float) -> None:
    """Loss, gradient and the separate parts, against torch's label smoothing and the formula of the z-loss."""
    hidden, weight, targets = example()
    targets[4] = -100
    logits = (hidden @ weight.t()).double()
    smooth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    squares = z * (logits.logsumexp(-1).square() * (targets != -100)).sum()
    actual = lm_head_loss(hidden, weight, targets, chunk_tokens=chunk, label_smoothing=smoothing, z_loss=z)
    torch.testing.assert_close(actual.total.double(), smooth + squares, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.nats.double(), plain(hidden, weight, targets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.z.double(), squares.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((actual.nats + actual.smoothing).double(), smooth.detach(), rtol=1e-5, atol=1e-5)
    assert not any(part.requires_grad for part in actual[1:])
    expected_grads = torch.autograd.grad((smooth + squares) / 7, (hidden, weight))
    found = torch.autograd.grad(actual.total / 7, (hidden, weight))
    torch.testing.assert_close(found, expected_grads, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        value = lm_head_loss(hidden, weight, targets, chunk_tokens=chunk, label_smoothing=smoothing, z_loss=z)
    for tensor, other in zip(value, actual, strict=True):
        torch.testing.assert_close(tensor, other.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [31, 32, 33])
def test_autocast_stays_near_fp32(vocab: int) -> None:
    """bf16 products, with and without padding of the vocabulary; fp32 loss and gradients."""
    _autocast_stays_near(vocab, label_smoothing=0.0, z_loss=0.0)


@pytest.mark.parametrize("vocab", [31, 32])
def test_smoothing_and_z_loss_under_autocast(vocab: int) -> None:
    _autocast_stays_near(vocab, label_smoothing=0.1, z_loss=1e-3)


def _autocast_stays_near(vocab: int, *, label_smoothing: float, z_loss: float) -> None:
    hidden, weight, targets = example(n=200, vocab=vocab)
    targets[5] = -100
    terms = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    expected = lm_head_loss(hidden, weight, targets, **terms).total
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        actual = lm_head_loss(hidden, weight, targets, chunk_tokens=64, **terms).total
    found = torch.autograd.grad(actual, (hidden, weight))
    assert abs(actual - expected) / expected < 0.005
    for tensor, other in zip(found, expected_grads, strict=True):
        assert tensor.dtype == torch.float32 and tensor.shape == other.shape
        assert (tensor - other).norm() / other.norm() < 0.02


def test_target_whose_probability_underflows_has_the_true_loss() -> None:
    """Also where exp(logit − max) is 0 in the dtype."""
    hidden = torch.tensor([[300.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    targets = torch.tensor([2, 0])
    actual = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(actual.double(), plain(hidden, weight, targets), rtol=1e-6, atol=1e-6)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that GPUs take."""
    monkeypatch.setattr(module, "ONE_PASS_DEVICES", ())


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("chunk", [None, 5])
def test_path_of_other_devices_equals_torch(chunk: int | None) -> None:
    hidden, weight, targets = example()
    targets[[3, 22]] = -100
    expected = plain(hidden, weight, targets)
    actual = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(actual, (hidden, weight))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (hidden, weight)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_a_gpu")
def test_path_of_other_devices_in_half_precision() -> None:
    """A loss is off by the rounding of the largest probability, also of a target that no probability in bf16 fits."""
    _autocast_stays_near(33, label_smoothing=0.0, z_loss=0.0)
    test_target_whose_probability_underflows_has_the_true_loss()
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(300, 40), 30 * torch.randn(300, 40)]).bfloat16()
    targets = torch.randint(40, (600, 1))
    losses, _ = module._losses_by_the_largest(logits, targets)
    off = losses - F.cross_entropy(logits.float(), targets[:, 0], reduction="none")
    assert off.abs().max() <= 2**-8 and abs(off.mean()) < 2**-12


def test_logits_never_exist_all_at_once() -> None:
    """No intermediate tensor is larger than the logits of a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    hidden, weight, targets = example(n=256, vocab=64)
    with Watch():
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=40).backward()
    assert largest <= 40 * 64


def test_a_second_backward_is_refused() -> None:
    hidden, weight, targets = example()
    value = linear_cross_entropy(hidden, weight, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="single backward pass"):
        value.backward()
