"""Preference losses: DPO, IPO, SimPO and ORPO.

With c and r the summed log-probabilities of the chosen and the rejected answer, c′ and r′ those before training and n
their numbers of tokens, each is a function of (c, r, c′, r′, n_c, n_r).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.training.objectives.pairs import LikelihoodObjective, PairLogprobs, PairScores


class DPO(LikelihoodObjective):
    """Direct preference optimization: −(1−ε) log σ(βΔ) − ε log σ(−βΔ) with Δ = (c − c′) − (r − r′).

    Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290), equation 7; with ε as in conservative DPO (Mitchell 2023).

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        beta: β, how strongly the model is held to its start.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.

    Raises:
        ValueError: a number is out of range.
    """

    needs_reference = True

    def __init__(self, model: nn.Module, *, beta: float, label_smoothing: float) -> None:
        super().__init__(model)
        self.beta = _positive("beta", beta)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 0.5")
        self.label_smoothing = label_smoothing

    def compare(self, policy: PairLogprobs, reference: Tensor) -> PairScores:
        chosen = self.beta * (policy.chosen - reference[:, 0])
        rejected = self.beta * (policy.rejected - reference[:, 1])
        delta, epsilon = chosen - rejected, self.label_smoothing
        loss = -(1 - epsilon) * F.logsigmoid(delta) - epsilon * F.logsigmoid(-delta)
        return PairScores(loss, loss, chosen, rejected)


class IPO(LikelihoodObjective):
    """Identity preference optimization: ((c − c′)/n_c − (r − r′)/n_r − 1/(2β))².

    Azar et al. 2023 (https://arxiv.org/abs/2310.12036), equation 17, on means over the tokens. The margin has a target,
    so pairs that the model already ranks far apart pull it back.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        beta: β, the strength of the regularization; the target of the margin is 1/(2β) nats per token.

    Raises:
        ValueError: beta is not positive.
    """

    needs_reference = True

    def __init__(self, model: nn.Module, *, beta: float) -> None:
        super().__init__(model)
        self.beta = _positive("beta", beta)

    def compare(self, policy: PairLogprobs, reference: Tensor) -> PairScores:
        chosen = (policy.chosen - reference[:, 0]) / policy.n_chosen
        rejected = (policy.rejected - reference[:, 1]) / policy.n_rejected
        loss = (chosen - rejected - 1 / (2 * self.beta)).square()
        return PairScores(loss, loss, self.beta * chosen, self.beta * rejected)


class SimPO(LikelihoodObjective):
    """Simple preference optimization: −log σ(β(c/n_c − r/n_r) − γ), without a reference.

    Meng et al. 2024 (https://arxiv.org/abs/2405.14734), equation 6.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        beta: β, scale of the mean log-probabilities.
        gamma: γ, the margin by which the chosen answer should win.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, model: nn.Module, *, beta: float, gamma: float) -> None:
        super().__init__(model)
        self.beta = _positive("beta", beta)
        if gamma < 0:
            raise ValueError(f"gamma={gamma} must be at least 0")
        self.gamma = gamma

    def compare(self, policy: PairLogprobs, reference: Tensor) -> PairScores:
        chosen = self.beta * policy.chosen / policy.n_chosen
        rejected = self.beta * policy.rejected / policy.n_rejected
        loss = -F.logsigmoid(chosen - rejected - self.gamma)
        return PairScores(loss, loss, chosen, rejected)


class ORPO(LikelihoodObjective):
    """Odds-ratio preference optimization: −c/n_c − λ log σ(log odds(c/n_c) − log odds(r/n_r)), without a reference.

    Hong et al. 2024 (https://arxiv.org/abs/2403.07691), equations 6 and 7; odds(a) = eᵃ / (1 − eᵃ). It trains on the
    chosen answers and against the rejected ones at once, so it can start from a model that was never fine-tuned.

    Args:
        model: a :class:`tinyllm.models.transformer.Transformer`.
        odds_weight: λ.

    Raises:
        ValueError: odds_weight is not positive.
    """

    def __init__(self, model: nn.Module, *, odds_weight: float) -> None:
        super().__init__(model)
        self.odds_weight = _positive("odds_weight", odds_weight)

    def compare(self, policy: PairLogprobs, reference: Tensor) -> PairScores:
        chosen, rejected = policy.chosen / policy.n_chosen, policy.rejected / policy.n_rejected
        odds = -self.odds_weight * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        return PairScores(odds - chosen, odds, chosen, rejected)


def log_odds(logprob: Tensor) -> Tensor:
    """log(eᵃ / (1 − eᵃ)) of a log-probability a < 0, exact also near 0."""
    return logprob - torch.log(-torch.expm1(logprob))


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{name}={value} must be above 0")
    return value
