"""LayerDrop: probabilities, gradients, and evaluation without it."""

import pytest
import torch
from torch import nn

from tests.support.options import Choice, built, small
from tinyllm.data.batch import Batch
from tinyllm.models.layerdrop import draw_active_blocks
from tinyllm.models.transformer import Transformer
from tinyllm.training.objectives.next_token import NextToken

IDS = torch.arange(24).view(2, 12) % 31


@pytest.mark.parametrize("n_layers", [1, 2, 5])
@pytest.mark.parametrize("p", [0.1, 0.6])
def test_block_l_is_dropped_with_probability_p_l(p: float, n_layers: int) -> None:
    """p·l/(L−1), and p for a single block: within 4.5 standard deviations over 4000 seeds."""
    draws = [draw_active_blocks(p, n_layers, seed=seed) for seed in range(4000)]
    assert all(draw is not None for draw in draws)
    dropped = 1 - torch.tensor(draws, dtype=torch.float64).mean(0)
    law = torch.tensor(
        [p * (depth / (n_layers - 1) if n_layers > 1 else 1) for depth in range(n_layers)], dtype=torch.float64
    )
    assert ((dropped - law).abs() <= 4.5 * (law * (1 - law) / 4000).sqrt()).all()
    if n_layers > 1:
        assert dropped[0] == 0


def test_blocks_are_dropped_independently() -> None:
    draws = torch.tensor([draw_active_blocks(0.8, 3, seed=seed) for seed in range(4000)], dtype=torch.float64)
    assert torch.corrcoef(draws.t()[1:])[0, 1].abs() < 0.08


def test_the_draw_depends_only_on_the_seed() -> None:
    before = torch.get_rng_state()
    draws = [draw_active_blocks(0.5, 8, seed=7)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert draw_active_blocks(0.5, 8, seed=7) == draws[0]
    assert len({tuple(draw_active_blocks(0.5, 8, seed=seed)) for seed in range(20)}) > 10


def without(model: Transformer, block: int) -> Transformer:
    """A copy of the model without the block."""
    rest = small(n_layers=len(model.blocks))
    rest.load_state_dict(model.state_dict())
    rest.blocks = nn.ModuleList([one for i, one in enumerate(rest.blocks) if i != block])
    return rest


def test_a_dropped_block_has_no_effect_and_zero_gradients() -> None:
    """No rescaling: output and gradients equal those of the model without the block, bit for bit."""
    model = small(n_layers=3, layerdrop=0.5)
    rest = without(model, 1)
    hidden, expected = model.forward_with_routing(IDS, active_blocks=[True, False, True])[0], rest(IDS)
    assert torch.equal(hidden, expected)
    hidden.square().sum().backward()
    expected.square().sum().backward()
    left = {name.replace("blocks.1.", "blocks.2."): p.grad for name, p in rest.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("blocks.1."):
            assert not parameter.grad.any(), name
        else:
            assert torch.equal(parameter.grad, left[name]), name


def test_all_blocks_may_be_dropped() -> None:
    model = small(layerdrop=0.5)
    hidden = model.forward_with_routing(IDS, active_blocks=[False, False])[0]
    assert torch.equal(hidden, model.norm(model.embedding(IDS)))
    hidden.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_dropped_without_active_blocks() -> None:
    """Evaluation, generation and the plain forward pass equal those of the model without LayerDrop."""
    model, plain = small(layerdrop=0.9), small()
    assert plain.draw_active_blocks(1) is None
    assert torch.equal(model(IDS), plain(IDS))
    assert torch.equal(model.eval()(IDS), plain.eval()(IDS))


def test_a_dropped_mixture_reports_no_routing() -> None:
    choice = Choice("mha", "rope", 0, "gelu", "aux_loss", "rmsnorm")
    model = built(choice, layerdrop=0.5)
    _, routings = model.forward_with_routing(IDS, active_blocks=[True, False])
    assert routings[0] is not None and routings[1] is None
    objective, batch = NextToken(model), Batch(inputs=IDS, targets=IDS)
    loss = objective(batch, active_blocks=[True, False])
    assert loss.expert_load is not None
    torch.testing.assert_close(loss.expert_load.balance_loss, routings[0].loss)
    assert list(loss.expert_load.loads) == [0]
    loss.share_of_step(weight=24, fraction=1.0).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.any() for p in model.blocks[1].parameters() if p.grad is not None)
    assert objective(batch, active_blocks=[False, False]).expert_load is None
