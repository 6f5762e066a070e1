"""Preference losses against their formulas on full logits, and the properties that runs rely on."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.models import tiny_model
from tests.support.preferences import random_pairs
from tinyllm.data.batch import Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.training.objectives.evaluation import evaluate_objective, read_reference
from tinyllm.training.objectives.pairs import LikelihoodObjective
from tinyllm.training.objectives.preference import DPO, IPO, ORPO, SimPO, log_odds

CPU = torch.device("cpu")


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x))


def odds(a: Tensor) -> Tensor:
    return torch.exp(a) / (1 - torch.exp(a))


# By name: the objective, and its loss as a function of c, r, c', r' (fp64) and the numbers of tokens.
CASES: dict[str, tuple[Callable[[Any], LikelihoodObjective], Callable[..., Tensor]]] = {
    "dpo": (
        lambda model: DPO(model, beta=0.3, label_smoothing=0.0),
        lambda c, r, c0, r0, n, m: -log_sigmoid(0.3 * ((c - c0) - (r - r0))),
    ),
    "conservative dpo": (
        lambda model: DPO(model, beta=0.3, label_smoothing=0.1),
        lambda c, r, c0, r0, n, m: (
            -0.9 * log_sigmoid(0.3 * ((c - c0) - (r - r0))) - 0.1 * log_sigmoid(-0.3 * ((c - c0) - (r - r0)))
        ),
    ),
    "ipo": (
        lambda model: IPO(model, beta=0.2),
        lambda c, r, c0, r0, n, m: ((c - c0) / n - (r - r0) / m - 1 / 0.4) ** 2,
    ),
    "simpo": (
        lambda model: SimPO(model, beta=2.0, gamma=0.5),
        lambda c, r, c0, r0, n, m: -log_sigmoid(2 * (c / n - r / m) - 0.5),
    ),
    "orpo": (
        lambda model: ORPO(model, odds_weight=0.1),
        lambda c, r, c0, r0, n, m: -c / n - 0.1 * log_sigmoid(torch.log(odds(c / n)) - torch.log(odds(r / m))),
    ),
}


def alone(model: Any, ids: np.ndarray, is_target: np.ndarray) -> tuple[Tensor, int]:
    """The log-probability of an answer from all logits of its row without padding, in fp64, and its tokens."""
    row = torch.from_numpy(ids.astype(np.int64))
    logprobs = model.logits(model(row[None, :-1]))[0].double().log_softmax(-1)
    counted = torch.from_numpy(is_target[1:])
    return logprobs[counted, row[1:][counted]].sum(), int(counted.sum())


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_formula(name: str) -> None:
    """Over padded rows of unequal lengths, with a reference that is not the policy."""
    make, formula = CASES[name]
    model, split = tiny_model(), random_pairs(5)
    objective, batch = make(model), split.batch(np.arange(5), seq_len=100)
    objective.reference = torch.linspace(-9, -3, 10).view(5, 2)
    losses = []
    for pair in range(5):
        rows = [slice(split.starts[row], split.starts[row + 1]) for row in (2 * pair, 2 * pair + 1)]
        (c, n), (r, m) = (alone(model, split.ids[row], split.is_target[row]) for row in rows)
        c0, r0 = objective.reference[pair].double()
        losses.append(formula(c, r, c0, r0, n, m))
    expected = torch.stack(losses).mean()
    loss = objective(batch)
    assert objective.weight(batch) == 5
    torch.testing.assert_close((loss.total / 5).double(), expected, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss.total / 5, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)


def test_log_odds_near_certainty() -> None:
    """An answer that the model is almost sure of has large odds, not infinite ones."""
    assert float(log_odds(torch.tensor(-1e-7))) == pytest.approx(-math.log(1e-7), rel=1e-5)
    assert float(log_odds(torch.tensor(-80.0))) == pytest.approx(-80.0)


def test_metrics_are_means_over_pairs_and_name_the_lengths() -> None:
    split = random_pairs(6)
    objective = DPO(tiny_model(), beta=0.5, label_smoothing=0.0)
    objective.reference = torch.full((6, 2), -4.0)
    metrics = evaluate_objective(objective, split.eval_batches(seq_len=12, batch_size=4), device=CPU, autocast=_plain)
    lengths = split.is_target.cumsum()[split.starts[1:] - 1]
    counts = np.diff(np.concatenate([[0], lengths])).reshape(6, 2)
    assert metrics["val/pref/length_chosen"] == pytest.approx(counts[:, 0].mean())
    assert metrics["val/pref/length_rejected"] == pytest.approx(counts[:, 1].mean())
    difference = metrics["val/pref/chosen"] - metrics["val/pref/rejected"]
    assert metrics["val/pref/margin"] == pytest.approx(difference, rel=1e-4)
    assert metrics["val/loss"] == metrics["val/pref/loss"] and 0 <= metrics["val/pref/accuracy"] <= 1


def test_two_ranks_evaluate_and_read_what_one_does() -> None:
    """Three batches over two ranks: the second one repeats a batch, whose numbers are not counted."""
    split, objective = random_pairs(5), DPO(tiny_model(), beta=0.5, label_smoothing=0.0)

    def batches() -> list[Batch]:
        return list(split.eval_batches(seq_len=12, batch_size=2))

    def read(rank: int, world_size: int, parts: list[Any]) -> Tensor:
        def gathered(own: Any) -> list[Any]:
            parts.append(own)
            return parts

        keywords: Any = {"device": CPU, "autocast": _plain, "rank": rank, "world_size": world_size}
        return read_reference(objective, batches(), n_pairs=5, gather_objects=gathered, **keywords)

    whole, parts = read(0, 1, []), []
    read(0, 2, parts)
    assert torch.equal(read(1, 2, parts), whole) and not whole.isnan().any()
    objective.reference = whole
    alone = evaluate_objective(objective, batches(), device=CPU, autocast=_plain)
    assert alone["val/loss"] == pytest.approx(math.log(2), abs=1e-7) and alone["val/pref/drift"] == 0
    rows: list[list[float]] = []

    def gather(own: list[float]) -> list[list[float]]:
        rows.append(own)
        return rows

    keywords: Any = {"device": CPU, "autocast": _plain, "world_size": 2, "gather": gather}
    evaluate_objective(objective, batches(), rank=0, **keywords)
    assert evaluate_objective(objective, batches(), rank=1, **keywords) == alone


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_a_forward_pass_before_the_reference_was_read_is_refused(name: str) -> None:
    objective = CASES[name][0](tiny_model())
    with pytest.raises(AssertionError, match="before the first step"):
        objective(random_pairs(2).batch(np.arange(2), seq_len=100))
    assert objective(objective.example(sequences=2, length=4)).total.isfinite()


def test_prompts_and_padding_have_no_targets() -> None:
    """The targets are exactly the answers' tokens, whatever the rows are padded to."""
    split = random_pairs(7)
    batch = split.batch(np.arange(7), seq_len=100)
    assert batch.counted == int(split.is_target.sum())
    for row in range(14):
        span = slice(split.starts[row], split.starts[row + 1])
        ids, counted = split.ids[span].astype(np.int64), split.is_target[span]
        assert batch.targets[row][batch.targets[row] != IGNORE].tolist() == ids[counted].tolist()
        assert batch.inputs[row, : len(ids) - 1].tolist() == ids[:-1].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: DPO(model, beta=0.0, label_smoothing=0.0), r"beta=0.0 must be above 0"),
        (lambda model: DPO(model, beta=0.1, label_smoothing=0.5), r"label_smoothing=0.5 must be"),
        (lambda model: SimPO(model, beta=2.0, gamma=-1.0), r"gamma=-1.0 must be"),
        (lambda model: ORPO(model, odds_weight=0.0), r"odds_weight=0.0 must be"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_model())


def _plain() -> Any:
    return torch.autocast("cpu", enabled=False)
