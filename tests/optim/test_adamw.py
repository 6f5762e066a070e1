"""AdamW and parameter groups."""

import pytest
import torch

import tinyllm
from tinyllm.optim.adamw import adamw
from tinyllm.optim.groups import parameter_groups
from tinyllm.programs.builders import build_model, build_optimizer
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.state import load_optimizer_state


def test_update_equals_the_paper() -> None:
    """Decoupled decay and bias-corrected moments, in float64."""
    torch.manual_seed(0)
    lr, b1, b2, eps, decay = 1e-2, 0.9, 0.95, 1e-8, 0.1
    weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    expected, m, v = (
        weight.detach().clone(),
        torch.zeros(5, 3, dtype=torch.float64),
        torch.zeros(5, 3, dtype=torch.float64),
    )
    optimizer = adamw([{"params": [weight]}], lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
    for t in range(1, 11):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected = expected - lr * decay * expected - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "overrides", [(), ("model.tie_embeddings=false", "model.bias=true", "norm=layernorm", "pos=learned")]
)
def test_only_matrices_of_linear_layers_decay(overrides: tuple[str, ...]) -> None:
    cfg = tinyllm.compose("model.d_model=32", "model.n_layers=2", "model.n_heads=2", *overrides)
    model = build_model(cfg, vocab_size=50, seed=1, device=torch.device("cpu"), allow=frozenset())
    optimizer, groups = build_optimizer(cfg, model, allow=frozenset())
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == linear - tables
    assert sum(group.parameters for group in groups) == sum(p.numel() for p in model.parameters())
    assert {group.weight_decay for group in groups} == {0.0, 0.1}
    names = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_decay_that_applies_to_nothing_is_refused() -> None:
    model = torch.nn.LayerNorm(4)
    with pytest.raises(ValueError, match="apply to nothing"):
        parameter_groups(model, {"weight": "vector", "bias": "vector"})
    with pytest.raises(ValueError, match="parameter bias has kind None"):
        parameter_groups(model, {"weight": "vector"})


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}, {"weight_decay": -0.1}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    right = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        adamw([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}], **right | wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [False, True])
def test_a_saved_step_is_put_where_the_kernel_reads_it(fused: bool) -> None:
    """A fused kernel on a GPU would take a host address for one of its own. ``meta`` stands for the GPU."""
    weight = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    optimizer = adamw([{"params": [weight], "names": ["w"]}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    optimizer.param_groups[0]["fused"] = fused
    saved = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3, 2), "exp_avg_sq": torch.zeros(3, 2)}
    load_optimizer_state(optimizer, {"w": saved}, Strategy())
    devices = {name: value.device.type for name, value in optimizer.state[weight].items()}
    assert devices == {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
