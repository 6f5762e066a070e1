"""Log-probabilities of tokens in chunks against torch's log_softmax of all logits."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tinyllm.nn.loss import IGNORE, first_positions, token_logprobs, token_scores


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(37, 8, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(37, (23,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logprobs = (hidden @ weight.t() / temperature).log_softmax(-1)
    taken = logprobs.gather(1, targets.where(targets != IGNORE, 0)[:, None]).squeeze(1)
    return taken * (targets != IGNORE)


@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
@pytest.mark.parametrize("ignored", [[], [0, 21, 22], list(range(23))], ids=["none", "some", "all"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_log_softmax(chunk: int | None, ignored: list[int], temperature: float) -> None:
    """In fp64, with a weight of its own for every token, as losses on sequences have."""
    hidden, weight, targets = example()
    targets[ignored] = IGNORE
    weights = torch.linspace(-1, 2, 23, dtype=torch.float64)
    expected = plain(hidden, weight, targets, temperature)
    found = token_logprobs(hidden, weight, targets, temperature=temperature, chunk_tokens=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((found * weights).sum(), (hidden, weight))
    wanted = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    torch.testing.assert_close(gradients, wanted, rtol=1e-11, atol=1e-11)


def test_entropies_equal_those_of_torch() -> None:
    hidden, weight, targets = example()
    targets[3] = IGNORE
    found = token_scores(hidden, weight, targets, temperature=0.7, chunk_tokens=5)
    expected = torch.distributions.Categorical(logits=hidden @ weight.t() / 0.7).entropy() * (targets != IGNORE)
    torch.testing.assert_close(found.entropies, expected.detach())
    assert not found.entropies.requires_grad and found.logprobs.requires_grad


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_positions_without_nonzero(share: float) -> None:
    mask = torch.rand(200, generator=torch.Generator().manual_seed(0)) < share
    assert torch.equal(first_positions(mask, int(mask.sum())), mask.nonzero().squeeze(1))


def test_half_precision_accumulates_in_fp32() -> None:
    hidden, weight, targets = example(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs(hidden, weight, targets, chunk_tokens=5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(hidden, weight, targets, 1.0), rtol=0.02, atol=0.05)
    gradients = torch.autograd.grad(found.sum(), (hidden, weight))
    wanted = torch.autograd.grad(plain(hidden, weight, targets, 1.0).sum(), (hidden, weight))
    torch.testing.assert_close(gradients, wanted, rtol=0.05, atol=0.1)


def test_logits_never_exist_all_at_once() -> None:
    """No tensor of either pass is larger than the logits of a chunk."""

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(x))
            return result

    sizes: list[int] = []
    hidden = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(1000, 4, requires_grad=True)
    targets = torch.arange(64)
    with Largest():
        token_logprobs(hidden, weight, targets, chunk_tokens=8).sum().backward()
    assert max(sizes) == 8 * 1000
