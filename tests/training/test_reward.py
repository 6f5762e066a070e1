"""The loss of a reward model: equal to each answer read alone, whatever the parts of the model."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.options import CONTEXT, VOCABULARY, Choice, built, combinations_of_all, everyday, params
from tests.support.preferences import random_pairs
from tinyllm.data.batch import ALIGN, Batch
from tinyllm.data.preferences.pairs import PairSource
from tinyllm.errors import UserError
from tinyllm.models.score_head import SCORE, attach_score_head, drop_head
from tinyllm.models.transformer import Transformer
from tinyllm.training.objectives.reward import Reward, last_targets

ALL = combinations_of_all()
EVERYDAY = sorted(everyday(ALL))[::12]


def scoring(model: Transformer) -> Reward:
    """A reward model whose head is not zero."""
    drop_head(model)
    attach_score_head(model)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    return Reward(model)


def pairs(*, longest: int = CONTEXT) -> tuple[Any, Batch]:
    split = random_pairs(3, vocab_size=VOCABULARY, longest=longest)
    split = type(split)(**vars(split) | {"reads_last": True})
    return split, PairSource(split, seq_len=longest, seed=0).batch(torch.arange(3).numpy())


def alone(objective: Reward, split: Any, pair: int) -> tuple[Tensor, Tensor]:
    """The scores of the two answers of a pair, each read without padding and without company."""
    scores = []
    for row in (2 * pair, 2 * pair + 1):
        ids = torch.tensor(split.ids[split.starts[row] : split.starts[row + 1]].astype("int64"))
        scores.append(F.linear(objective.model(ids[None])[0, -1], objective.model.score.weight)[0])
    return scores[0], scores[1]


@pytest.mark.parametrize("choice", params(ALL, EVERYDAY))
def test_loss_and_gradient_equal_those_of_each_answer_alone(choice: Choice) -> None:
    objective = scoring(built(choice))
    split, batch = pairs()
    loss = objective(batch)
    loss.total.backward()
    together = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    margins = [torch.sub(*alone(objective, split, pair)) for pair in (batch.extra["pair"] - split.first).tolist()]
    expected = -F.logsigmoid(torch.stack(margins)).sum()
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)
    assert together.keys() == {name for name, _ in objective.named_parameters()}, "no parameter is left without one"
    for name, p in objective.named_parameters():
        torch.testing.assert_close(together[name], p.grad, rtol=1e-4, atol=1e-5)
    assert loss.metrics["pref/margin"].item() == pytest.approx(sum(margin.item() for margin in margins), abs=1e-4)


def test_a_new_head_ranks_nothing() -> None:
    model = built(min(ALL))
    attach_score_head(model)
    _, batch = pairs()
    loss = Reward(model)(batch)
    assert loss.total.item() == pytest.approx(3 * math.log(2), abs=1e-6)
    assert loss.metrics["pref/accuracy"] == 1.5 and loss.metrics["pref/chosen"] == 0, "ties count half"
    assert model.parameter_kinds()[SCORE] == "head" and [*model.state_dict()][-1] == SCORE


def test_the_last_token_is_read_and_nothing_after_it() -> None:
    split, batch = pairs()
    last = last_targets(batch.targets) + 1
    rows = torch.stack([2 * batch.extra["pair"], 2 * batch.extra["pair"] + 1], dim=1).flatten()
    ends = split.ids[split.starts[1:] - 1].astype("int64")[rows.numpy()]
    assert batch.inputs[torch.arange(6), last].tolist() == ends.tolist()
    objective = scoring(built(min(ALL)))
    before = objective(batch).total
    for row, end in enumerate(last.tolist()):
        batch.inputs[row, end + 1 :] = 7  # padding
    torch.testing.assert_close(objective(batch).total, before, rtol=0, atol=0)
    example = objective.example(sequences=2, length=CONTEXT)
    assert example.inputs.shape == (4, CONTEXT) and objective(example).total.isfinite()


def test_an_answer_takes_one_more_token_than_where_its_last_is_only_predicted() -> None:
    split, _ = pairs()
    longest = int(split.longest.max())
    assert len(split.fitting(longest)) == 3
    with pytest.raises(UserError, match="raise it"):
        split.fitting(longest - 1)
    assert len(random_pairs(3, longest=CONTEXT).fitting(longest - 1)) == 3
    for batch in split.eval_batches(seq_len=longest, batch_size=3):
        assert batch.inputs.shape == (6, longest) and longest % ALIGN, "no padding beyond the context"
