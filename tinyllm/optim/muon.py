"""Muon: momentum orthogonalized by Newton–Schulz iteration."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from tinyllm.optim.adamw import adamw
from tinyllm.optim.base import (
    Groups,
    Shapes,
    adamw_shapes,
    check_not_negative,
    declares_state_bytes,
    one_moment_bytes,
    two_moments_bytes,
)
from tinyllm.optim.groups import DECAYED, MATRIX
from tinyllm.utils.tensors import full_tensor, local_tensor, part_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: the largest slope at 0 that keeps singular values near 1 (Jordan 2024)."""

STEPS = 5
"""Iterations; five take singular values from 0.0016 of the matrix's norm upwards to about 1 (0.7 to 1.2)."""

MAX_EXPONENT = 20
"""Matrices whose largest entry is outside 2^±20 are scaled by a power of two before they are normalized."""

TINY_NORM = 1e-20
"""Keeps a division by the norm of zeros from making NaN."""

Scale = Literal["spectral", "rms"]


def state_bytes(groups: Groups, *, orthogonal_head: bool = False, **settings: Any) -> int:
    """Bytes of state: one momentum for Muon's matrices, AdamW's two moments for the rest."""
    muon_kinds = orthogonalized_kinds(orthogonal_head=orthogonal_head)
    return sum((one_moment_bytes if group["kind"] in muon_kinds else two_moments_bytes)([group]) for group in groups)


def orthogonalized_kinds(*, orthogonal_head: bool) -> tuple[str, ...]:
    """Kinds of parameters that Muon updates; AdamW updates the rest."""
    return DECAYED if orthogonal_head else (MATRIX,)


@declares_state_bytes(state_bytes)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices, AdamW for everything else.

    The head is left to AdamW, as in the original: its rows are tokens, and a step with equal singular values would move
    rare tokens as far as frequent ones. With AdamW for an untied head, the loss of ``model=pico`` is 0.05 nats lower
    (experiments/LOG.md).

    m ← β·m + (1−β)·g; u = orthogonalized β·m + (1−β)·g (Nesterov); w ← w − lr·(s·u + weight_decay·w). In a stack of
    matrices, such as a mixture's experts, each is orthogonalized by itself. Matrices of the same shape go through one
    batched iteration. Sharded matrices are gathered for it, and every rank computes all of them.

    A training step of ``model=baby`` takes 1.19 times as long as with AdamW (experiments/LOG.md).

    Args:
        params: groups with their ``kind``; Muon updates kind ``matrix``, the remaining groups are marked ``entrywise``.
        lr: peak learning rate of the matrices.
        adamw_lr: peak learning rate of everything else; None: ``lr``. Sets ``lr_scale`` = adamw_lr / lr of its groups.
        momentum: β.
        scale: s. ``rms``: 0.2·√(larger side), which gives updates the RMS of AdamW's, so that AdamW's learning rates
            carry over (Liu et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4); ``spectral``: √max(1, rows/columns).
        orthogonal_head: Muon updates the head too.
        normalize_neurons: :func:`normalize_neurons` after the orthogonalization.
        betas, eps: of AdamW.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        adamw_lr: float | None,
        momentum: float,
        scale: Scale,
        orthogonal_head: bool,
        normalize_neurons: bool,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        check_not_negative(lr=lr, weight_decay=weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} is out of range: it must be at least 0 and below 1")
        if adamw_lr is not None and not (adamw_lr > 0 and lr > 0):
            raise ValueError(f"adamw_lr={adamw_lr} and lr={lr} must both be above 0")
        self.momentum, self.scale, self.normalize_neurons = momentum, scale, normalize_neurons
        muon_kinds = orthogonalized_kinds(orthogonal_head=orthogonal_head)
        adamw_groups = [group for group in params if group["kind"] not in muon_kinds]
        for group in params:
            group["entrywise"] = group["kind"] not in muon_kinds
        for group in adamw_groups:
            group["lr_scale"] = 1.0 if adamw_lr is None else adamw_lr / lr
        self.adamw = None
        if adamw_groups:
            self.adamw = adamw(adamw_groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        if self.adamw is not None:  # it already shares our groups; sharing the state too gives a single state dict
            self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if not group["entrywise"]:
                for weights in by_shape(p for p in group["params"] if p.grad is not None):
                    self._update(weights, lr=group["lr"], weight_decay=group["weight_decay"])
        if self.adamw is not None:
            self.adamw.step()

    def state_shapes(self, group: dict[str, Any], shape: tuple[int, ...]) -> Shapes:
        """The state kept for a parameter."""
        return adamw_shapes(shape) if group["entrywise"] else {"m": shape}

    def _update(self, weights: list[Tensor], *, lr: float, weight_decay: float) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["m"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["m"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        # Gathered, because a shard of a matrix has different singular vectors. Stacked, because one batched iteration
        # is much cheaper than many small ones.
        updates = torch.stack(
            [full_tensor(update) for update in torch._foreach_lerp(gradients, momenta, self.momentum)]
        )
        size = self.update_norm(*updates.shape[-2:])
        orthogonal = orthogonalize(updates.flatten(0, -3)).view(updates.shape)
        if self.normalize_neurons:
            orthogonal = normalize_neurons(orthogonal)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        steps = [part_of(step, weight) for step, weight in zip(orthogonal.to(weights[0].dtype), weights, strict=True)]
        torch._foreach_add_([local_tensor(weight) for weight in weights], steps, alpha=-lr * size)

    def update_norm(self, rows: int, columns: int) -> float:
        """s, which is the spectral norm of a step at learning rate 1."""
        return 0.2 * max(rows, columns) ** 0.5 if self.scale == "rms" else max(1.0, rows / columns) ** 0.5


def by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """The weights grouped by shape."""
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in weights:
        groups[weight.shape].append(weight)
    return list(groups.values())


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """Push all singular values to about 1 (0.7 to 1.2) by Newton–Schulz iteration.

    In bf16, whose rounding is small against that spread.

    Args:
        matrices_NRC: N matrices of the same shape.

    Returns:
        The same shape, bf16. A zero matrix stays zero.
    """
    x = _scaled(matrices_NRC).bfloat16()
    tall = x.shape[-2] > x.shape[-1]  # transposed, so that the Gram matrix has the size of the smaller side
    if tall:
        x = x.mT
    # The iteration converges for singular values up to 1, and the Frobenius norm is no less than the spectral norm.
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(x.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def normalize_neurons(updates: Tensor) -> Tensor:
    """Give every row of tall matrices, and every column of wide ones, the same norm; the matrices keep theirs.

    Orthogonalization equalizes the vectors along the smaller side only: the neurons of a hidden layer, which are the
    rows of its matrix of shape (d_ff, d_model) and the columns of the next one, get updates of very different sizes.
    This is NorMuon (Li et al. 2025, https://arxiv.org/abs/2510.05491) with the norms of this step in place of their
    moving average, so that it needs no state.

    Args:
        updates: (…, R, C)

    Returns:
        The same shape, fp32. Rows or columns of zeros stay zeros.
    """
    updates = updates.float()
    rows, columns = updates.shape[-2:]
    norms = torch.linalg.vector_norm(updates, dim=-1 if rows >= columns else -2, keepdim=True)
    equal = updates / norms.clamp_min(TINY_NORM)
    before, after = (torch.linalg.matrix_norm(matrices, keepdim=True) for matrices in (updates, equal))
    return equal * (before / after.clamp_min(TINY_NORM))


def _scaled(matrices_NRC: Tensor) -> Tensor:
    """Scale very small and very large matrices by a power of two, so that the largest entry is near 1.

    A step must not depend on the size of the gradient. Without this it would for gradients below 1e-7, whose norm is
    less than the constant that guards against division by 0. The squares in a norm, too, leave the range of fp32 for
    entries below 1e-19 or above 1e19. A power of two changes no bits but the exponent.
    """
    peak = matrices_NRC.abs().amax((-2, -1), keepdim=True)
    exponent = torch.frexp(peak).exponent
    shift = torch.where(exponent.abs() <= MAX_EXPONENT, 0, -exponent).clamp(-126, 126)  # fp32 ends at 2^127
    return torch.ldexp(matrices_NRC, shift)
