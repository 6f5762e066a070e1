"""Objectives on pairs of answers: what they share, from the model's hidden states to the metrics of a step."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tinyllm.data.batch import PAIR, PAIRS, Batch
from tinyllm.nn.feedforward import Routing
from tinyllm.nn.loss import IGNORE, token_logprobs
from tinyllm.training.expert_load import ExpertLoad
from tinyllm.training.objectives.base import TRAIN_LOSS, Loss, Objective


class PairLogprobs(NamedTuple):
    """Log-probabilities of the answers of B pairs, summed over their tokens; (B,) each.

    An answer's tokens include its stop token and none of the prompt.
    """

    chosen: Tensor
    rejected: Tensor
    n_chosen: Tensor
    """Number of tokens of the chosen answer."""
    n_rejected: Tensor


class PairScores(NamedTuple):
    """The loss of B pairs, and the scores by which they are compared; (B,) each."""

    loss: Tensor
    """To be minimized, with a gradient."""
    preference: Tensor
    """The part of the loss that compares the answers."""
    chosen: Tensor
    """The score of the chosen answer: an implicit reward, or a reward model's."""
    rejected: Tensor


Scored = tuple[PairScores, dict[str, Tensor], list[Routing | None]]
"""The scores of a batch, further metrics summed over its pairs, and the routing of each block."""


class PairObjective(Objective):
    """A mean over pairs of answers to a prompt, of which one was chosen.

    A batch holds two rows per pair: first the chosen, then the rejected answer, each after its prompt.
    """

    reads = PAIRS

    def weight(self, batch: Batch) -> int:
        """The number of pairs."""
        return batch.sequences // 2

    @abstractmethod
    def scores(self, batch: Batch, active_blocks: Sequence[bool] | None) -> Scored:
        """Loss and scores of each pair of a batch."""

    def forward(self, batch: Batch, active_blocks: Sequence[bool] | None = None) -> Loss:
        pairs, more, routings = self.scores(batch, active_blocks)
        chosen, rejected = pairs.chosen.detach(), pairs.rejected.detach()
        lengths_B2 = (batch.targets != IGNORE).sum(1).view(-1, 2).float()
        total = pairs.loss.sum()
        metrics = {
            TRAIN_LOSS: total.detach(),
            "pref/loss": pairs.preference.detach().sum(),
            # A tie counts half: before the first step, all answers have the score of their reference.
            "pref/accuracy": ((chosen > rejected).float() + (chosen == rejected).float() / 2).sum(),
            "pref/margin": (chosen - rejected).sum(),
            "pref/chosen": chosen.sum(),
            "pref/rejected": rejected.sum(),
            **more,
            "pref/length_chosen": lengths_B2[:, 0].sum(),
            "pref/length_rejected": lengths_B2[:, 1].sum(),
        }
        return Loss(total, metrics, ExpertLoad.of(routings))

    def example(self, *, sequences: int, length: int) -> Batch:
        """A batch of this many pairs."""
        return super().example(sequences=2 * sequences, length=length)


class LikelihoodObjective(PairObjective):
    """A loss on pairs that reads how likely the model makes the two answers.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.

    Attributes:
        needs_reference: whether the loss compares the model with the one that training started from.
        reference: (pairs, 2): log-probabilities of the chosen and the rejected answer of every pair under that model,
            by the number of the pair; None until they have been read.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.reference: Tensor | None = None

    @abstractmethod
    def compare(self, policy: PairLogprobs, reference: Tensor) -> PairScores:
        """The loss of each pair.

        Args:
            reference: (B, 2): the log-probabilities of both answers before training; zeros if the loss needs none.
        """

    def logprobs(
        self, batch: Batch, active_blocks: Sequence[bool] | None = None
    ) -> tuple[PairLogprobs, list[Routing | None]]:
        """The log-probabilities of both answers of each pair, and the routing of each block.

        The reference is read by this function, too: with equal weights it gives equal bits.
        """
        hidden_BTC, routings = self.model.forward_with_routing(
            batch.inputs, active_blocks=active_blocks, doc_ids=batch.doc_ids
        )
        tokens_N = token_logprobs(
            hidden_BTC.flatten(0, 1), self.model.head_weight, batch.targets.flatten(), n_counted=batch.known_count
        )
        sums_B2 = tokens_N.view(batch.targets.shape).sum(1).view(-1, 2)
        counts_B2 = (batch.targets != IGNORE).sum(1).view(-1, 2)
        return PairLogprobs(sums_B2[:, 0], sums_B2[:, 1], counts_B2[:, 0], counts_B2[:, 1]), routings

    def scores(self, batch: Batch, active_blocks: Sequence[bool] | None) -> Scored:
        policy, routings = self.logprobs(batch, active_blocks)
        reference_B2 = self._reference_of(batch, policy)
        more = {}
        if self.needs_reference:
            moved = (policy.chosen + policy.rejected).detach() - reference_B2.sum(1)
            more["pref/drift"] = moved.sum() / 2
        return self.compare(policy, reference_B2), more, routings

    def _reference_of(self, batch: Batch, policy: PairLogprobs) -> Tensor:
        if not self.needs_reference or PAIR not in batch.extra:  # the example of a trial pass is no pair of the data
            return torch.zeros_like(torch.stack([policy.chosen, policy.rejected], dim=1))
        assert self.reference is not None, "the reference is read before the first step"
        return self.reference.to(policy.chosen.device)[batch.extra[PAIR]]
