"""Mixtures of experts around any feed-forward layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.nn.expert_dispatch import Dispatch
from tinyllm.nn.feedforward import FeedForward, Routing, lookup
from tinyllm.nn.grouped_linear import GroupedLinear, RowGroups, row_multiple
from tinyllm.nn.inference_linear import InferenceLinear
from tinyllm.nn.linear import NeverRoundedLinear
from tinyllm.utils.signatures import make, names_of
from tinyllm.utils.tensors import autocast_dtype

SCORES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}
"""Values of ``router``: the functions from router logits to scores."""

MIN_SUM = 1e-20
"""Lower bound on the sum that gates are divided by. Sigmoid scores can all round to 0, and 0/0 is NaN; the bound also
keeps 1/sum, a factor of the gradient, far from overflow."""


def dense(*, ffn: Callable[..., FeedForward], d_model: int, model_d_ff: int, bias: bool) -> FeedForward:
    """The feed-forward layer itself, without a mixture (``moe=none``)."""
    layer: FeedForward = make(ffn, d_model=d_model, model_d_ff=model_d_ff, bias=bias)
    return layer


MAX_EXPERTS = 2**16
"""A larger n_experts, likely a typo, would take minutes to build before any other check could refuse it."""


class Mixture(FeedForward):
    """Shared experts for every token, and routed experts of which a router chooses a few per token.

    Dropless: every token is computed by all of its experts and by no others. The routed experts are one ``ffn`` layer
    with stacked matrices (E, out, in), the shared experts a second one, as wide as all of them together. The router
    computes in fp32 at any precision. Subclasses decide how experts are kept balanced.

    Letters: E routed experts, K of them chosen per token, N tokens.

    Args:
        ffn: factory of an expert; its constructor must take ``d_ff`` and ``linear``, the factory of its linear layers.
        n_experts: number of experts, shared and routed.
        n_shared: shared experts, which are among ``n_experts`` and ``n_active``.
        n_active: experts per token.
        expert_d_ff: hidden size of an expert; None: ``n_active`` experts are as wide as the dense layer would be.
        router: a name in ``SCORES``.
        routed_scale: factor on the output of the routed experts.
        normalize: divide the gates of a token's routed experts by their sum; None: if there are several.
        n_groups: number of groups of consecutive routed experts.
        n_active_groups: groups from which a token's experts are chosen, the best ones; None: all.
        d_model, model_d_ff, bias: the model's shape.

    Attributes:
        best_of_group: groups are ranked by the sum of this many of their best scores.
        balance_coeff: factor on the balance loss.

    Raises:
        ValueError: a number is out of range, numbers do not match, or ``ffn`` cannot be stacked.
    """

    best_of_group = 1
    balance_coeff = 0.0

    def __init__(
        self,
        *,
        ffn: Callable[..., FeedForward],
        n_experts: int,
        n_shared: int,
        n_active: int,
        expert_d_ff: int | None,
        router: str,
        routed_scale: float,
        d_model: int,
        model_d_ff: int,
        bias: bool,
        normalize: bool | None = None,
        n_groups: int = 1,
        n_active_groups: int | None = None,
    ) -> None:
        super().__init__()
        if n_shared < 0:
            raise ValueError(f"n_shared={n_shared} must be at least 0")
        if n_active <= n_shared:
            raise ValueError(f"n_active={n_active} must be more than n_shared={n_shared}, which it includes")
        if n_experts > MAX_EXPERTS:
            raise ValueError(f"n_experts={n_experts} must be at most {MAX_EXPERTS}")
        if n_experts < n_active:
            raise ValueError(f"n_experts={n_experts} must be at least n_active={n_active}")
        if not routed_scale > 0:
            raise ValueError(f"routed_scale={routed_scale} must be positive")
        missing = {"d_ff", "linear"} - names_of(ffn)
        if missing:
            raise ValueError(f"ffn={ffn} cannot be an expert: its constructor has no {' and no '.join(missing)}")
        self.score = lookup(SCORES, router, parameter="router")
        self.n_routed, self.n_chosen = n_experts - n_shared, n_active - n_shared
        self.routed_scale = routed_scale
        # With a single expert the normalized gate would always be 1, and the router would get no gradient.
        self.normalize = self.n_chosen > 1 if normalize is None else normalize
        self.n_groups = n_groups
        self.n_active_groups = n_groups if n_active_groups is None else n_active_groups
        self._check_groups()
        # Built only to ask it for its hidden size, which each kind of layer derives by a rule of its own.
        with torch.device("meta"):
            dense_layer: FeedForward = make(ffn, d_model=d_model, model_d_ff=model_d_ff, bias=bias)
        self.d_ff = max(8, 8 * round(dense_layer.d_ff / n_active / 8)) if expert_d_ff is None else expert_d_ff
        if self.d_ff < 1:
            raise ValueError(f"expert_d_ff={expert_d_ff} must be at least 1")
        expert = partial(make, d_model=d_model, model_d_ff=model_d_ff, bias=bias)
        # Never rounded: a rounded router would choose different experts than it did in training.
        self.router = NeverRoundedLinear(d_in=d_model, d_out=self.n_routed, bias=False)
        self.groups = RowGroups(per_token=self.n_chosen)
        grouped = partial(GroupedLinear, n_experts=self.n_routed, groups=self.groups)
        self.experts: FeedForward = expert(partial(ffn, d_ff=self.d_ff), linear=grouped)
        # n shared experts side by side are the same function as one that is n times as wide, in fewer products.
        self.shared: FeedForward | None = expert(partial(ffn, d_ff=n_shared * self.d_ff)) if n_shared else None

    def _check_groups(self) -> None:
        n_groups, n_active_groups = self.n_groups, self.n_active_groups
        if n_groups < 1 or self.n_routed % n_groups:
            raise ValueError(f"n_groups={n_groups} does not divide the {self.n_routed} routed experts")
        size = self.n_routed // n_groups
        if not 1 <= n_active_groups <= n_groups:
            raise ValueError(f"n_active_groups={n_active_groups} must be from 1 to n_groups={n_groups}")
        if n_active_groups < n_groups and n_active_groups * size < self.n_chosen:
            raise ValueError(
                f"n_active_groups={n_active_groups} of {size} experts each are fewer than {self.n_chosen} per token"
            )
        if n_active_groups < n_groups and size < self.best_of_group:
            raise ValueError(
                f"n_groups={n_groups} makes groups of {size}; groups are ranked by their best {self.best_of_group}"
            )

    def choose(self, score_NE: Tensor) -> Tensor:
        """The experts (N, K) of each token: the highest scores within the best groups."""
        if self.n_active_groups < self.n_groups:  # fewer groups per token: fewer devices to send it to (DeepSeek-V2)
            score_NGe = score_NE.unflatten(1, (self.n_groups, -1))
            group_score_NG = score_NGe.topk(self.best_of_group, dim=-1).values.sum(-1)
            active_NG = torch.zeros_like(group_score_NG, dtype=torch.bool)
            active_NG.scatter_(1, group_score_NG.topk(self.n_active_groups).indices, value=True)
            score_NE = score_NGe.masked_fill(~active_NG[..., None], -torch.inf).flatten(1)
        return score_NE.topk(self.n_chosen).indices

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Routing | None]:
        """The output of shared and chosen experts, and in training the routing statistics."""
        x_NC = x_BTC.flatten(0, -2)
        score_NE = self.score(self._logits(x_NC))
        chosen_NK = self.choose(score_NE.detach())  # a choice has no gradient; the router learns through the gates
        gate_NK = score_NE.gather(1, chosen_NK)
        if self.normalize:
            gate_NK = shares(gate_NK)
        # scatter_add rather than bincount, which would synchronize a GPU. Sums of ones are exact in any order.
        load_BE = score_NE.new_zeros(x_BTC.shape[0], self.n_routed)
        ones = load_BE.new_ones(()).expand(x_BTC.shape[0], x_BTC.shape[-2] * self.n_chosen)
        load_BE.scatter_add_(1, chosen_NK.view(x_BTC.shape[0], -1), ones)
        load_E = load_BE.sum(0)

        x_NC = x_NC.to(autocast_dtype(x_NC.device, x_NC.dtype))  # round before copying to K experts
        block = row_multiple(x_NC.device, x_NC.dtype) if self.groups.padded else 1
        dispatch = Dispatch(chosen_NK, load_E, block=block)
        x_MC = dispatch.gather(x_NC)
        self.groups.assign(dispatch.rows_E, len(x_MC), dtype=x_MC.dtype)
        y_MC, _ = self.experts(x_MC)
        y_NC = dispatch.combine(y_MC, gate_NK * self.routed_scale)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)[0]
        routing = Routing(self._balance_loss(score_NE, load_BE), load_E) if self.training else None
        return y_NC.view(x_BTC.shape), routing

    def _logits(self, x_NC: Tensor) -> Tensor:
        """Router logits in at least fp32, because rounded scores would send tokens to different experts.

        Switch Transformer (Fedus et al. 2022, https://arxiv.org/abs/2101.03961, §2.4) calls this selective precision.
        """
        with torch.autocast("cpu" if x_NC.is_meta else x_NC.device.type, enabled=False):
            dtype = torch.promote_types(x_NC.dtype, torch.float32)
            if isinstance(self.router, InferenceLinear):
                logits_NE: Tensor = self.router(x_NC.to(dtype))
                return logits_NE
            return F.linear(x_NC.to(dtype), self.router.weight.to(dtype))

    def _balance_loss(self, score_NE: Tensor, load_BE: Tensor) -> Tensor:
        """Balance loss: coefficient · Σ f_i·P_i, averaged over sequences; the sum is 1 in perfect balance.

        P_i is the mean share of expert i in the scores of a token, f_i the fraction of choices that fell on it, times E
        (DeepSeek-V3, equations 17 to 20; Switch Transformer, equation 4).
        """
        if not self.balance_coeff:
            return load_BE.new_zeros((), dtype=torch.float32)
        share_BTE = shares(score_NE).view(len(load_BE), -1, self.n_routed)
        fraction_BE = load_BE * (self.n_routed / (share_BTE.shape[1] * self.n_chosen))
        return self.balance_coeff * (fraction_BE * share_BTE.mean(1)).sum(1).mean().float()

    def init_weights(self, *, std: float, residual_std: float) -> None:
        self.router.init_weights(std)
        self.experts.init_weights(std=std, residual_std=residual_std)
        if self.shared is not None:
            self.shared.init_weights(std=std, residual_std=residual_std)

    def flops_per_token(self) -> int:
        shared = 0 if self.shared is None else self.shared.flops_per_token()
        return self.router.flops() + shared + self.n_chosen * self.experts.flops_per_token()

    def has_data_dependent_shapes(self, device: torch.device, dtype: torch.dtype) -> bool:
        experts = (part for part in self.modules() if isinstance(part, GroupedLinear))
        return not all(part.uses_grouped_mm(device, dtype) for part in experts)

    def inactive_parameters(self) -> int:
        per_expert = sum(parameter[0].numel() for parameter in self.experts.parameters())
        return (self.n_routed - self.n_chosen) * per_expert


def shares(score_NE: Tensor) -> Tensor:
    """Scores (≥ 0) divided by their sum over the last dimension; 0 where all are 0."""
    return score_NE / score_NE.sum(-1, keepdim=True).clamp_min(MIN_SUM)


class AuxLoss(Mixture):
    """A mixture balanced by an auxiliary loss: the experts with the highest scores are chosen.

    Groups are ranked by their best expert, as in DeepSeek-V2.

    Args:
        coeff: factor on the balance loss.
        shared: arguments of :class:`Mixture`.
    """

    def __init__(self, *, coeff: float, **shared: Any) -> None:
        super().__init__(**shared)
        self.balance_coeff = _not_negative("coeff", coeff)


class AuxFree(Mixture):
    """A mixture balanced by a bias (DeepSeek-V3): experts are chosen by score + bias and weighted by score.

    Balances better than the loss: over 500 steps the entropy of the load, relative to a uniform one, is 0.996 with the
    bias and 0.970 with the loss (experiments/LOG.md). Groups are ranked by their two best experts, as in DeepSeek-V3.

    No forward pass changes the bias; :meth:`balance` does, once per optimizer step.

    Args:
        gamma: change of an expert's bias per step.
        alpha: factor on the balance loss.
        shared: arguments of :class:`Mixture`.
    """

    bias_E: Tensor
    best_of_group = 2

    def __init__(self, *, gamma: float, alpha: float, **shared: Any) -> None:
        super().__init__(**shared)
        self.gamma, self.balance_coeff = _not_negative("gamma", gamma), _not_negative("alpha", alpha)
        # a buffer, because checkpoints need it and the optimizer must not touch it
        self.register_buffer("bias_E", torch.zeros(self.n_routed))

    def choose(self, score_NE: Tensor) -> Tensor:
        return super().choose(score_NE + self.bias_E)

    def balance(self, load_E: Tensor) -> None:
        if not self.router.weight.requires_grad:  # frozen with its router (LoRA): a bias that moved would not be saved
            return
        # the sign only: a step of fixed size, whatever the imbalance (DeepSeek-V3, §2.1.2)
        self.bias_E += self.gamma * (load_E.mean() - load_E).sign()

    def init_weights(self, *, std: float, residual_std: float) -> None:
        super().init_weights(std=std, residual_std=residual_std)
        self.bias_E.zero_()


def _not_negative(name: str, value: float) -> float:
    if value < 0:
        raise ValueError(f"{name}={value} must be at least 0")
    return value
