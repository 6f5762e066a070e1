"""The objective of a reward model: the chosen answer gets the higher score."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.training.objectives.pairs import PairObjective, PairScores, Scored


class Reward(PairObjective):
    """−log σ(s_c − s_r) of the scores of the chosen and the rejected answer: the Bradley–Terry model of preferences.

    Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), equation 1. The score is a linear function of the hidden
    state of the last real token of an answer, its stop token: it has seen all of the answer, and that it ended.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer` with a score head.
    """

    scores_answers = True

    def scores(self, batch: Batch, active_blocks: Sequence[bool] | None) -> Scored:
        hidden_BTC, routings = self.model.forward_with_routing(
            batch.inputs, active_blocks=active_blocks, doc_ids=batch.doc_ids
        )
        last_B = last_targets(batch.targets) + 1
        scores_B2 = self.model.score(hidden_BTC[torch.arange(len(last_B), device=last_B.device), last_B]).view(-1, 2)
        chosen, rejected = scores_B2.unbind(1)
        loss = -F.logsigmoid(chosen - rejected)
        return PairScores(loss, loss, chosen, rejected), {}, routings

    def example(self, *, sequences: int, length: int) -> Batch:
        """A batch of this many pairs, whose last token is no target but read."""
        batch = super().example(sequences=sequences, length=length)
        targets = batch.targets.clone()
        targets[:, -1] = IGNORE
        return replace(batch, targets=targets)


def last_targets(targets_BT: Tensor) -> Tensor:
    """The position of the last target of each row, (B,): the token after it is the last real one."""
    is_target_BT = targets_BT != IGNORE
    from_the_end_B = is_target_BT.flip(1).int().argmax(1)  # argmax is the first of equal values
    return targets_BT.shape[1] - 1 - from_the_end_B
