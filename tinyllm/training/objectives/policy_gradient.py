"""Policy gradients from groups of answers: advantages and the clipped loss, as functions of tensors alone."""

from collections.abc import Callable

import torch
from torch import Tensor

ADVANTAGES = ("mean", "std", "leave_one_out")
NORMALISERS = ("fixed", "targets", "sequence")
TINY = 1e-4
"""Added to a group's standard deviation, as TRL does."""


def _mean(rewards_PG: Tensor) -> Tensor:
    return rewards_PG - rewards_PG.mean(1, keepdim=True)


def _std(rewards_PG: Tensor) -> Tensor:
    return _mean(rewards_PG) / (rewards_PG.std(1, keepdim=True) + TINY)


def _leave_one_out(rewards_PG: Tensor) -> Tensor:
    group = rewards_PG.shape[1]
    return _mean(rewards_PG) * (group / (group - 1))


_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = dict(zip(ADVANTAGES, (_mean, _std, _leave_one_out), strict=True))


def advantages(rewards_PG: Tensor, kind: str) -> Tensor:
    """Advantage of each answer over the others of its group; (P, G) like the rewards. Equal rewards give 0.

    Args:
        rewards_PG: G answers to each of P prompts.
        kind: ``mean``: reward − mean of the group (Dr. GRPO, Liu et al. 2025, https://arxiv.org/abs/2503.20783);
            ``std``: that, divided by the group's standard deviation (GRPO, Shao et al. 2024,
            https://arxiv.org/abs/2402.03300, equation 3), which gives groups of nearly equal rewards as much weight as
            others; ``leave_one_out``: reward − mean of the other answers (RLOO, Ahmadian et al. 2024).
    """
    found = _ADVANTAGES[kind](rewards_PG)
    is_equal = rewards_PG == rewards_PG[:, :1]
    return found.masked_fill(is_equal.all(1, keepdim=True), 0.0)  # and not the rounding of the mean


def clipped_losses(
    logprobs_RT: Tensor, old_logprobs_RT: Tensor, advantages_R: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """−min(ρA, clip(ρ, 1−ε_l, 1+ε_h)·A) of each token, and ρ; (R, T).

    PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7) with ρ = π / π_old and an upper limit of
    its own (DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476).
    """
    ratio_RT = (logprobs_RT - old_logprobs_RT).exp()
    clipped_RT = ratio_RT.clamp(1 - clip_low, 1 + clip_high)
    advantages_R1 = advantages_R[:, None]
    return -torch.minimum(ratio_RT * advantages_R1, clipped_RT * advantages_R1), ratio_RT


def k3(logprobs_RT: Tensor, reference_RT: Tensor) -> Tensor:
    """An estimate of KL(π ‖ π_ref) per token that is never negative: e^d − d − 1 with d = log π_ref − log π.

    Schulman 2020, "Approximating KL divergence". Unlike −d, whose gradient has mean 0, it pulls π towards π_ref.
    """
    difference = reference_RT - logprobs_RT
    return difference.exp() - difference - 1


def summed(losses_RT: Tensor, counted_RT: Tensor, normaliser: str) -> Tensor:
    """The losses of the counted tokens, summed so that dividing by :func:`divisor` gives the loss of the step."""
    losses_RT = losses_RT.masked_fill(~counted_RT, 0.0)
    if normaliser != "sequence":
        return losses_RT.sum()
    return (losses_RT.sum(1) / counted_RT.sum(1).clamp(min=1)).sum()


def divisor(normaliser: str, *, answers: int, tokens: int, max_new_tokens: int) -> int:
    """What a sum of losses is divided by; the divisors of micro-batches and ranks add up.

    Args:
        normaliser: ``fixed``: answers · max_new_tokens, so that a token counts the same in a short and in a long answer
            and in every step (Dr. GRPO); ``targets``: the tokens of the step (DAPO); ``sequence``: the answers, each a
            mean over its own tokens (GRPO), which makes long wrong answers cheap.
        answers, tokens: number of answers, and of tokens that the model chose in them.
    """
    return {"fixed": answers * max_new_tokens, "targets": tokens, "sequence": answers}[normaliser]
