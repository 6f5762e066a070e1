"""The moving average of the weights against its formula."""

import torch
from torch import nn

from tinyllm.optim.ema import EMA, NoAverage


def run(ema: NoAverage, model: nn.Linear, steps: int) -> list[torch.Tensor]:
    """Set the weight to the number of finished steps; the weights seen, one per step."""
    seen = []
    ema.after_step(0)
    for step in range(1, steps + 1):
        model.weight.data = torch.full((1, 1), float(step))
        ema.after_step(step)
        seen.append(model.weight.detach().clone())
    return seen


def average(ema: NoAverage, model: nn.Linear) -> float:
    with ema.applied():
        return float(model.weight.detach())


def one(weight: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(weight)
    return model


def test_decay_grows_with_the_updates_up_to_its_limit() -> None:
    model = one(5.0)
    ema = EMA(model, decay=0.5, update_every=1, start_step=0)
    run(ema, model, 30)
    expected = 5.0
    for t in range(30):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * (t + 1)
    assert abs(average(ema, model) - expected) < 1e-5
    assert float(model.weight.detach()) == 30.0


def test_it_starts_as_a_copy_and_then_takes_every_kth_step() -> None:
    model = one()
    ema = EMA(model, decay=0.9999, update_every=3, start_step=4)
    run(ema, model, 3)
    assert average(ema, model) == 3.0  # not started yet: the weights themselves
    model = one()
    ema = EMA(model, decay=0.9999, update_every=3, start_step=4)
    run(ema, model, 6)
    assert average(ema, model) == 4.0
    run_on = EMA(model, decay=0.9999, update_every=3, start_step=4)
    run_on.load_state_dict(ema.state_dict())
    for averages in (ema, run_on):
        model.weight.data = torch.full((1, 1), 7.0)
        averages.after_step(7)
        assert abs(average(averages, model) - (0.1 * 4 + 0.9 * 7)) < 1e-6


def test_two_thousand_steps_at_decay_0_9999_forget_the_initial_weights() -> None:
    """With a constant decay, 82 % of the average would be the initial weights."""
    model = one(1.0)
    ema = EMA(model, decay=0.9999, update_every=1, start_step=0)
    ema.after_step(0)
    model.weight.data = torch.zeros(1, 1)
    for step in range(1, 2001):
        ema.after_step(step)
    assert average(ema, model) < 1e-20
    assert 0.9999**2000 > 0.8


def test_weights_are_restored_after_an_error() -> None:
    model = one()
    ema = EMA(model, decay=0.9, update_every=1, start_step=0)
    run(ema, model, 5)
    try:
        with ema.applied():
            raise KeyError
    except KeyError:
        pass
    assert float(model.weight.detach()) == 5.0


def test_no_average_changes_nothing() -> None:
    model = one()
    nothing = NoAverage()
    run(nothing, model, 2)
    assert average(nothing, model) == 2.0 and nothing.state_dict() == {}
