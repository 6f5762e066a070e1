"""GRPO: reinforcement learning from groups of answers that the model itself gives."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from tinyllm.data.batch import PROMPTS, Batch
from tinyllm.nn.feedforward import Routing
from tinyllm.nn.loss import IGNORE, TokenScores, token_scores
from tinyllm.training.expert_load import ExpertLoad
from tinyllm.training.objectives.base import TRAIN_LOSS, Loss, Objective
from tinyllm.training.objectives.policy_gradient import clipped_losses, divisor, k3, summed

ADVANTAGE, OLD, REFERENCE, PER_TOKEN = "advantage", "old_logprobs", "reference_logprobs", "per_token"
"""Names of the extra tensors of a batch of answers: (R,), twice (R, T), and a factor that makes means over tokens."""
Advantage = Literal["mean", "std", "leave_one_out"]
Normaliser = Literal["fixed", "targets", "sequence"]


class GRPO(Objective):
    """Group-relative policy optimization (Shao et al. 2024, https://arxiv.org/abs/2402.03300).

    Every step samples a group of answers to each of its prompts, rewards them and makes those that are better than the
    others of their group likelier. Each answer is trained on once, right after it was sampled. The defaults are those
    of Dr. GRPO (Liu et al. 2025): no division by the group's standard deviation or by the length of an answer.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        group_size: answers to each prompt.
        max_new_tokens: limit on the tokens of an answer; longer right answers are cut off and count as given.
        temperature: of the distribution that answers are drawn from and trained in.
        advantage: see :func:`tinyllm.training.objectives.policy_gradient.advantages`.
        normaliser: see :func:`tinyllm.training.objectives.policy_gradient.divisor`.
        clip_low, clip_high: ε below and above, between which the ratio to the sampled probabilities counts.
        beta: weight of the divergence from the model that training started from, see
            :func:`tinyllm.training.objectives.policy_gradient.k3`; 0: none, and no second model in memory.

    Raises:
        ValueError: a number is out of range.
    """

    selects = "val/reward"
    lower_is_better = False
    reads = PROMPTS

    def __init__(
        self,
        model: nn.Module,
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        advantage: Advantage,
        normaliser: Normaliser,
        clip_low: float,
        clip_high: float,
        beta: float = 0.0,
    ) -> None:
        super().__init__(model)
        if group_size < 2:
            raise ValueError(f"group_size={group_size} must be at least 2: an answer is compared with the others")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0: equal answers teach nothing")
        if not 0 < clip_low < 1 or clip_high <= 0:
            name, value = ("clip_high", clip_high) if 0 < clip_low < 1 else ("clip_low", clip_low)
            raise ValueError(f"{name}={value} must be above 0, and clip_low below 1")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta={beta} must be at least 0")
        self.beta, self.needs_reference_model = beta, beta > 0
        self.group_size, self.max_new_tokens, self.temperature = group_size, max_new_tokens, temperature
        self.advantage, self.normaliser = advantage, normaliser
        self.clip_low, self.clip_high = clip_low, clip_high

    @property
    def answers_per_sample(self) -> tuple[int, int]:
        return self.group_size, self.max_new_tokens

    def weight(self, batch: Batch) -> int:
        """What the summed loss is divided by, see :func:`divisor`."""
        return divisor(
            self.normaliser, answers=batch.sequences, tokens=batch.counted, max_new_tokens=self.max_new_tokens
        )

    def scores(
        self, model: Any, batch: Batch, active_blocks: Sequence[bool] | None = None
    ) -> tuple[TokenScores, list[Routing | None]]:
        """What a model says about the targets of a batch (R·T,), and the routing of each of its blocks."""
        hidden_RTC, routings = model.forward_with_routing(
            batch.inputs, active_blocks=active_blocks, doc_ids=batch.doc_ids
        )
        scores = token_scores(
            hidden_RTC.flatten(0, 1),
            model.head_weight,
            batch.targets.flatten(),
            temperature=self.temperature,
            n_counted=batch.known_count,
        )
        return scores, routings

    def forward(self, batch: Batch, active_blocks: Sequence[bool] | None = None) -> Loss:
        scores, routings = self.scores(self.model, batch, active_blocks)
        shape, counted_RT = batch.targets.shape, batch.targets != IGNORE
        logprobs_RT, old_RT = scores.logprobs.view(shape), batch.extra[OLD]
        advantages_R = batch.extra[ADVANTAGE]
        losses_RT, ratio_RT = clipped_losses(
            logprobs_RT, old_RT, advantages_R, clip_low=self.clip_low, clip_high=self.clip_high
        )
        of_tokens = {}
        if self.beta:
            divergence_RT = k3(logprobs_RT, batch.extra[REFERENCE])
            losses_RT = losses_RT + self.beta * divergence_RT
            of_tokens["rl/kl"] = divergence_RT.detach().masked_fill(~counted_RT, 0.0).sum()
        total = summed(losses_RT, counted_RT, self.normaliser)
        ratio_RT, advantages_R1 = ratio_RT.detach(), advantages_R[:, None]
        of_tokens |= {
            "rl/entropy": scores.entropies.sum(),
            "rl/clip_low": ((ratio_RT < 1 - self.clip_low) & (advantages_R1 < 0) & counted_RT).sum(),
            "rl/clip_high": ((ratio_RT > 1 + self.clip_high) & (advantages_R1 > 0) & counted_RT).sum(),
            "rl/mismatch": ((logprobs_RT.detach() - old_RT).abs() * counted_RT).sum(),
        }
        scaled = {name: value * batch.extra[PER_TOKEN] for name, value in of_tokens.items()}
        return Loss(total, {TRAIN_LOSS: total.detach(), **scaled}, ExpertLoad.of(routings))

    def example(self, *, sequences: int, length: int) -> Batch:
        """The answers to this many prompts."""
        batch = super().example(sequences=sequences * self.group_size, length=length)
        zeros = torch.zeros(batch.inputs.shape, device=batch.inputs.device)
        batch.extra.update({ADVANTAGE: zeros[:, 0], OLD: zeros, PER_TOKEN: torch.ones_like(zeros[0, 0])})
        if self.beta:
            batch.extra[REFERENCE] = zeros
        return batch
