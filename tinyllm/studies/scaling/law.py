"""The scaling law L(N, D): loss by parameters N and training tokens D, and the best N and D for a FLOP budget.

Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556. The parametric form of section 3.3 (approach 3),
L(N, D) = E + A/N^α + B/D^β, is fitted to log L under the Huber loss of appendix D.2. The parabolas of section 3.2
(approach 2) are fitted as a check.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from tinyllm.errors import UserError

Column = np.ndarray[Any, Any]
PARAMETERS = 5
"""Number of parameters of the law. A fit needs at least one more run, or it could not show a misfit."""
HUBER = 1e-3
"""Residual of log L at which the Huber loss turns from quadratic to linear (appendix D.2)."""
LEVEL = 0.95
"""Coverage of the intervals."""
EXPONENTS = (0.01, 4.0)
"""Search range of α and β."""
FLOOR = 12.0
"""Lower bound of E: exp(-FLOOR) times the smallest loss."""
GRID = np.geomspace(0.05, 2.0, 20)
"""Initial values of α and β that are tried before the descent."""
STARTS = 3
"""Number of best initial pairs (α, β) to descend from; the best result is the fit."""


@dataclass(frozen=True, kw_only=True)
class FittedRun:
    """One finished run."""

    budget: float
    """FLOPs granted to the run; it uses what whole steps cost."""
    parameters: int
    """Active parameters."""
    tokens: int
    flops_per_token: int
    loss: float
    """Validation loss in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """L(N, D) = E + A/N^α + B/D^β."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Predicted loss in nats per token; numbers or arrays."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


@dataclass(frozen=True, kw_only=True)
class TokenCost:
    """Training FLOPs per token by model size: factor · N^exponent, fitted to a ladder on log-log scale.

    The usual 6·N omits attention and whatever else is not a weight matrix, a large share of the cost in small models.
    """

    factor: float
    exponent: float

    def flops(self, parameters: Any) -> Any:
        """FLOPs per token."""
        return self.factor * parameters**self.exponent


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The compute-optimal model at a budget, with bootstrap intervals once they are computed."""

    flops: float
    parameters: float
    tokens: float
    loss: float
    parameters_between: tuple[float, float] | None = None
    tokens_between: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class IsoFlopParabola:
    """Parabola in log N through the losses of one budget (approach 2)."""

    budget: float
    parameters: float
    """Model size at the minimum."""
    tokens: float
    loss: float
    inside: bool
    """Whether the minimum lies between the smallest and the largest trained size."""


def price_of(runs: Sequence[FittedRun]) -> TokenCost:
    """Fit the cost of a training token to the sizes of a ladder.

    Raises:
        UserError: fewer than two sizes.
    """
    sizes = sorted({(run.parameters, run.flops_per_token) for run in runs})
    if len({n for n, _ in sizes}) < 2:
        raise UserError(
            "a scaling law needs more than one size",
            key="scaling.sizes",
            value=len(sizes),
            hint="train at least two sizes",
        )
    # A power law, so that the optimum below has a closed form.
    logs = np.log(np.array(sizes, dtype=float))
    exponent, intercept = np.polyfit(logs[:, 0], logs[:, 1], 1)
    return TokenCost(factor=float(np.exp(intercept)), exponent=float(exponent))


def fit(runs: Sequence[FittedRun]) -> Law:
    """Fit the law to finished runs.

    Raises:
        UserError: too few runs.
    """
    if len(runs) <= PARAMETERS:
        hint = f"a law with {PARAMETERS} parameters needs at least {PARAMETERS + 1}; add budgets or sizes"
        raise UserError(f"{len(runs)} runs are too few to fit", file="scaling", hint=hint)
    columns = _columns(runs)
    # The loss surface has local minima, so the fit descends from several starts (appendix D.2 uses a grid of them).
    ends = [_descend(start, *columns) for start in _starts(*columns)]
    return _law(min(ends, key=lambda end: end.cost).x)


def bootstrap(runs: Sequence[FittedRun], law: Law, *, draws: int, seed: int) -> list[Law]:
    """Fit the law to bootstrap samples of the runs, stratified by budget.

    A sample with fewer distinct runs than the law has parameters determines no fit and is drawn again.

    Args:
        law: the fit to all runs, from which each fit starts.
        draws: number of samples.
    """
    random = np.random.default_rng(seed)
    budgets = sorted({run.budget for run in runs})
    groups = [np.flatnonzero([run.budget == budget for run in runs]) for budget in budgets]
    columns = _columns(runs)
    start = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    laws: list[Law] = []
    while len(laws) < draws:
        sample = np.concatenate([random.choice(group, len(group)) for group in groups])
        if len(set(sample.tolist())) >= PARAMETERS:
            laws.append(_law(_descend(start, *(column[sample] for column in columns)).x))
    return laws


def optimum(law: Law, price: TokenCost, flops: float) -> Optimum:
    """Minimize L(N, D) under D · price(N) = flops.

    With D = flops / (k·N^g), the derivative with respect to N is zero at
    N* = (αA / (gβB) · (flops/k)^β)^(1/(α+gβ)). For k = 6 and g = 1 this is equation 4 of the paper.
    """
    k, g = price.factor, price.exponent
    share = law.alpha * law.A / (g * law.beta * law.B)
    parameters = (share * (flops / k) ** law.beta) ** (1 / (law.alpha + g * law.beta))
    tokens = flops / price.flops(parameters)
    return Optimum(flops=flops, parameters=parameters, tokens=tokens, loss=law.loss(parameters, tokens))


def exponent(law: Law, price: TokenCost) -> float:
    """Exponent a of N* ∝ C^a, where C is the budget."""
    return law.beta / (law.alpha + price.exponent * law.beta)


def with_interval(best: Optimum, laws: Sequence[Law], price: TokenCost) -> Optimum:
    """Add the 95 % bootstrap intervals of N* and D*."""
    optima = [optimum(law, price, best.flops) for law in laws]
    return replace(
        best,
        parameters_between=central_interval([other.parameters for other in optima]),
        tokens_between=central_interval([other.tokens for other in optima]),
    )


def central_interval(values: Sequence[float]) -> tuple[float, float]:
    """Quantiles that enclose the middle 95 % of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def isoflop_parabolas(runs: Sequence[FittedRun], price: TokenCost) -> list[IsoFlopParabola]:
    """Fit a parabola to each budget with at least three sizes; parabolas without a minimum are left out."""
    parabolas = []
    for budget in sorted({run.budget for run in runs}):
        at_budget = [run for run in runs if run.budget == budget]
        x = np.log([run.parameters for run in at_budget])
        if len(set(x.tolist())) < 3:
            continue
        bend, slope, level = np.polyfit(x, [run.loss for run in at_budget], 2)
        if bend <= 0:
            continue
        lowest = -slope / (2 * bend)
        parameters = float(np.exp(lowest))
        parabolas.append(
            IsoFlopParabola(
                budget=budget,
                parameters=parameters,
                tokens=float(budget / price.flops(parameters)),
                loss=float(level - slope**2 / (4 * bend)),
                inside=bool(x.min() <= lowest <= x.max()),
            )
        )
    return parabolas


def _columns(runs: Sequence[FittedRun]) -> tuple[Column, Column, Column]:
    """log N, log D and log L of the runs, (runs,) each."""
    rows = np.array([[run.parameters, run.tokens, run.loss] for run in runs], dtype=float)
    return np.log(rows[:, 0]), np.log(rows[:, 1]), np.log(rows[:, 2])


def _starts(n: Column, d: Column, loss: Column) -> list[Column]:
    """Best initial values: given α and β from the grid, finding E, A, B ≥ 0 is a linear least-squares problem."""
    candidates = []
    for alpha, beta in product(GRID, GRID):
        # Centred on the ladder to keep the columns of similar size; divided by L to make the errors relative.
        columns = np.stack([np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean())), np.ones_like(n)], axis=1)
        sizes, error = nnls(columns / np.exp(loss)[:, None], np.ones_like(n))
        a, b, e = np.log(np.maximum(sizes, 1e-9))  # nnls may return zeros
        candidates.append((error, [a + alpha * n.mean(), b + beta * d.mean(), e, alpha, beta]))
    return [np.array(start) for _, start in sorted(candidates)[:STARTS]]


def _descend(start: Column, n: Column, d: Column, loss: Column) -> Any:
    """Minimize the Huber loss of log L over x = (log A, log B, log E, α, β), from an initial value."""
    # E ≤ the smallest loss; exponents within the search range.
    least = loss.min()
    low = np.array([-np.inf, -np.inf, least - FLOOR, EXPONENTS[0], EXPONENTS[0]])
    high = np.array([np.inf, np.inf, least, EXPONENTS[1], EXPONENTS[1]])
    margin = 1e-6  # least_squares requires a start strictly inside the bounds
    start = np.clip(start, low + margin, high - margin)
    huber = {"loss": "huber", "f_scale": HUBER, "x_scale": "jac"}
    return least_squares(_residuals, start, _jacobian, (low, high), args=(n, d, loss), **huber)


def _terms(x: Column, n: Column, d: Column) -> Column:
    """Logarithms of the three terms of the law, (3, runs)."""
    return np.stack([x[0] - x[3] * n, x[1] - x[4] * d, np.full_like(n, x[2])])


def _residuals(x: Column, n: Column, d: Column, loss: Column) -> Column:
    return np.asarray(np.logaddexp.reduce(_terms(x, n, d), axis=0)) - loss


def _jacobian(x: Column, n: Column, d: Column, loss: Column) -> Column:
    terms = _terms(x, n, d)
    of_a, of_b, of_e = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
    return np.stack([of_a, of_b, of_e, -of_a * n, -of_b * d], axis=1)


def _law(x: Column) -> Law:
    a, b, e = np.exp(x[:3])
    return Law(A=float(a), B=float(b), E=float(e), alpha=float(x[3]), beta=float(x[4]))
