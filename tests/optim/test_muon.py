"""Muon against torch's Muon, its singular values, and AdamW for the other parameters."""

from typing import Any

import numpy as np
import pytest
import torch

from tinyllm.optim.adamw import adamw
from tinyllm.optim.muon import Muon, normalize_neurons, orthogonalize

RIGHT: dict[str, Any] = {
    "lr": 0.02,
    "adamw_lr": None,
    "momentum": 0.95,
    "scale": "rms",
    "orthogonal_head": False,
    "normalize_neurons": False,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
}


def groups(matrices: list[torch.nn.Parameter], vectors: list[torch.nn.Parameter] | None = None) -> list[dict[str, Any]]:
    """Groups like those of ``parameter_groups``."""
    made: list[dict[str, Any]] = [{"params": matrices, "kind": "matrix"}]
    return [*made, {"params": vectors, "kind": "vector", "weight_decay": 0.0}] if vectors else made


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    matrices[1] *= 1e-3
    singular = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert float(singular.min()) > 0.4 and float(singular.max()) < 1.3
    # u·vᵀ of the singular value decomposition is the nearest orthogonal matrix
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ vt
    cosine = torch.nn.functional.cosine_similarity(orthogonalize(matrices).float().flatten(1), nearest.flatten(1))
    assert float(cosine.min()) > 0.97


def test_a_batch_equals_each_matrix_alone() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 8, 24)
    alone = torch.cat([orthogonalize(one[None]) for one in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone, rtol=2e-2, atol=1e-2)
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize("power", [-140, -100, -40, -24, -12, 12, 40, 100, 120])
def test_a_step_does_not_depend_on_the_size_of_the_gradient(power: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, 12, 20)
    matrix = torch.ldexp(torch.ldexp(matrix, torch.tensor(100)).round(), torch.tensor(-100))
    scaled = torch.ldexp(torch.ldexp(matrix, torch.tensor(power // 2)), torch.tensor(power - power // 2))
    coarse = power == -140  # subnormal numbers have few bits
    torch.testing.assert_close(
        orthogonalize(scaled), orthogonalize(matrix), rtol=0, atol=0.2 if coarse else 0.01, msg=lambda text: text
    )


@pytest.mark.parametrize("orthogonal", [False, True])
def test_an_untied_head_is_adamws_unless_orthogonal_head_is_set(orthogonal: bool) -> None:
    torch.manual_seed(0)
    heads = [torch.nn.Parameter(torch.randn(8, 6)) for _ in range(2)]
    named: list[dict[str, Any]] = [{"params": heads[:1], "kind": "head"}]
    muon = Muon(named, **RIGHT | {"orthogonal_head": orthogonal})
    plain = adamw([{"params": heads[1:]}], lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    with torch.no_grad():
        heads[1].copy_(heads[0])
    for head in heads:
        head.grad = torch.ones(8, 6)
    muon.step()
    plain.step()
    assert torch.equal(heads[0], heads[1]) != orthogonal
    assert set(muon.state[heads[0]]) == ({"m"} if orthogonal else set(plain.state[heads[1]]))


@pytest.mark.parametrize(("scale", "theirs"), [("rms", "match_rms_adamw"), ("spectral", "original")])
def test_update_equals_torchs(scale: str, theirs: str) -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((16, 16), (16, 48), (48, 16), (16, 16))]
    ours, other = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    muon = Muon(groups(ours), **RIGHT | {"scale": scale})
    reference = torch.optim.Muon(other, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=theirs)
    for _ in range(5):
        for a, b in zip(ours, other, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    for a, b, w in zip(ours, other, start, strict=True):
        assert float((a - b).detach().norm() / (a - w).detach().norm()) < 0.02  # both in bf16, in different orders


def test_experts_are_orthogonalized_one_by_one() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.zeros(3, 8, 8))
    optimizer = Muon(groups([stack]), **RIGHT | {"scale": "spectral", "lr": 1.0})
    stack.grad = torch.randn(3, 8, 8)
    optimizer.step()
    singular = torch.linalg.svdvals(stack.detach())
    assert float(singular.min()) > 0.4 and float(singular.max()) < 1.3


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8), (2, 24, 8)])
def test_normalized_neurons_get_updates_of_the_same_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    # a neuron without a gradient, in the direction of the larger side
    gradient[(..., 3, slice(None)) if shape[-2] >= shape[-1] else (..., slice(None), 3)] = 0
    steps = []
    for normalized in (False, True):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = gradient.clone()
        Muon(groups([weight]), **RIGHT | {"normalize_neurons": normalized, "weight_decay": 0.0}).step()
        steps.append(weight.detach().double().numpy().reshape(-1, *shape[-2:]))
    for plain, normalized in zip(*steps, strict=True):
        neurons = plain if shape[-2] >= shape[-1] else plain.T
        expected = np.stack([neuron / (np.sqrt((neuron**2).sum()) or 1) for neuron in neurons])
        expected *= np.sqrt((plain**2).sum() / (expected**2).sum())
        actual = normalized if shape[-2] >= shape[-1] else normalized.T
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)
        assert not actual[3].any() and actual.any()
    assert not normalize_neurons(torch.zeros(2, 5, 3)).any()


def test_other_parameters_are_adamws_at_its_own_rate() -> None:
    torch.manual_seed(0)
    vectors = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    muon = Muon(groups([torch.nn.Parameter(torch.ones(4, 4))], vectors[:1]), **RIGHT | {"adamw_lr": 1e-3})
    plain = adamw([{"params": vectors[1:]}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(4):
        for group in muon.param_groups:  # as the loop sets it: the schedule is a factor on every group
            group["lr"] = 0.02 * group.get("lr_scale", 1.0)
        gradient = torch.randn(5)
        for vector in vectors:
            vector.grad = gradient.clone()
        muon.step()
        plain.step()
    torch.testing.assert_close(vectors[0], vectors[1])
    assert set(muon.state) == {vectors[0]}  # the matrix had no gradient


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"adamw_lr": 0.0}, {"momentum": 1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -0.1}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    parameters = groups([torch.nn.Parameter(torch.ones(2, 2))], [torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Muon(parameters, **RIGHT | wrong)
