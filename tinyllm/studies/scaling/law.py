"""The loss of a model of N parameters after D tokens, and the best N and D at a budget of FLOPs.

Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556: the form of section 3.3 (approach 3),
L(N, D) = E + A/N^α + B/D^β, fitted to log L under the Huber loss of its appendix D.2, and beside it the parabolas of
section 3.2 (approach 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tinyllm.errors import UserError

Column = np.ndarray[Any, Any]
PARAMETERS = 5
"""Of the law; so many runs and one more are needed to see whether it fits at all."""
HUBER = 1e-3
"""Where the Huber loss of log L turns from squares to absolute values."""
LEVEL = 0.95
"""Of the intervals."""
EXPONENTS = (0.01, 4.0)
"""Within these α and β are looked for."""
FLOOR = 12.0
"""E is at least exp(-FLOOR) of the smallest loss."""
GRID = np.geomspace(0.05, 2.0, 20)
"""α and β that are tried before the descent."""
STARTS = 3
"""So many of the best pairs are descended from; the best end counts."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run that has ended."""

    budget: float
    """FLOPs that it was given; it takes as many as whole steps cost."""
    parameters: int
    """Active ones."""
    tokens: int
    flops_per_token: int
    loss: float
    """On the validation split, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """L(N, D) = E + A/N^α + B/D^β."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Nats per token, of numbers or arrays."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


@dataclass(frozen=True, kw_only=True)
class Price:
    """Training FLOPs per token of the sizes of a ladder: factor · N^exponent, fitted to their logarithms.

    The usual 6·N leaves out attention and, in small models, most of what is not a weight matrix.
    """

    factor: float
    exponent: float

    def flops(self, parameters: Any) -> Any:
        """FLOPs per token."""
        return self.factor * parameters**self.exponent


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best model at a budget, with its interval where it was asked for."""

    flops: float
    parameters: float
    tokens: float
    loss: float
    parameters_between: tuple[float, float] | None = None
    tokens_between: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The parabola of log N through the losses of one budget."""

    budget: float
    parameters: float
    """At its lowest point."""
    tokens: float
    loss: float
    inside: bool
    """Whether that lies between the smallest and the largest size that were trained."""


def price_of(points: Sequence[Point]) -> Price:
    """What a token costs, by size.

    Raises:
        UserError: fewer than two sizes.
    """
    sizes = sorted({(one.parameters, one.flops_per_token) for one in points})
    if len({n for n, _ in sizes}) < 2:
        raise UserError("one size is no ladder", key="scaling.sizes", value=len(sizes), hint="at least two sizes")
    logs = np.log(np.array(sizes, dtype=float))
    exponent, intercept = np.polyfit(logs[:, 0], logs[:, 1], 1)
    return Price(factor=float(np.exp(intercept)), exponent=float(exponent))


def fit(points: Sequence[Point]) -> Law:
    """The law that fits best.

    Raises:
        UserError: too few runs.
    """
    if len(points) <= PARAMETERS:
        hint = f"a law of {PARAMETERS} parameters needs at least {PARAMETERS + 1}; add budgets or sizes"
        raise UserError(f"{len(points)} runs are too few to fit", file="scaling", hint=hint)
    columns = _columns(points)
    ends = [_descend(start, *columns) for start in _starts(*columns)]
    return _law(min(ends, key=lambda found: found.cost).x)


def bootstrap(points: Sequence[Point], law: Law, *, draws: int, seed: int) -> list[Law]:
    """Laws of other samples of the same runs: of each budget's runs as many as there are, drawn with replacement.

    A draw with fewer different runs than the law has parameters fits nothing and is drawn again.

    Args:
        law: of all runs; each fit starts there.
    """
    random = np.random.default_rng(seed)
    groups = [np.flatnonzero([one.budget == budget for one in points]) for budget in sorted({p.budget for p in points})]
    columns = _columns(points)
    start = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    laws: list[Law] = []
    while len(laws) < draws:
        drawn = np.concatenate([random.choice(group, len(group)) for group in groups])
        if len(set(drawn.tolist())) >= PARAMETERS:
            laws.append(_law(_descend(start, *(column[drawn] for column in columns)).x))
    return laws


def optimum(law: Law, price: Price, flops: float) -> Optimum:
    """Where L(N, D) is least under D · price(N) = flops.

    With D = flops / (k·N^g) the derivative after N is zero at N* = (αA / (gβB) · (flops/k)^β)^(1/(α+gβ)); for
    k = 6 and g = 1 that is equation 4 of the paper.
    """
    k, g = price.factor, price.exponent
    share = law.alpha * law.A / (g * law.beta * law.B)
    parameters = (share * (flops / k) ** law.beta) ** (1 / (law.alpha + g * law.beta))
    tokens = flops / price.flops(parameters)
    return Optimum(flops=flops, parameters=parameters, tokens=tokens, loss=law.loss(parameters, tokens))


def exponent(law: Law, price: Price) -> float:
    """N* grows as the budget to this power."""
    return law.beta / (law.alpha + price.exponent * law.beta)


def with_interval(best: Optimum, laws: Sequence[Law], price: Price) -> Optimum:
    """The optimum with the middle 95 % of what other samples of the runs give."""
    others = [optimum(law, price, best.flops) for law in laws]
    return Optimum(
        flops=best.flops,
        parameters=best.parameters,
        tokens=best.tokens,
        loss=best.loss,
        parameters_between=middle([one.parameters for one in others]),
        tokens_between=middle([one.tokens for one in others]),
    )


def middle(values: Sequence[float]) -> tuple[float, float]:
    """The quantiles between which the middle 95 % lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def valleys(points: Sequence[Point], price: Price) -> list[Valley]:
    """The parabola of each budget with at least three sizes whose losses bend upwards."""
    found = []
    for budget in sorted({one.budget for one in points}):
        mine = [one for one in points if one.budget == budget]
        x = np.log([one.parameters for one in mine])
        if len(set(x.tolist())) < 3:
            continue
        bend, slope, level = np.polyfit(x, [one.loss for one in mine], 2)
        if bend <= 0:
            continue
        lowest = -slope / (2 * bend)
        parameters = float(np.exp(lowest))
        found.append(
            Valley(
                budget=budget,
                parameters=parameters,
                tokens=float(budget / price.flops(parameters)),
                loss=float(level - slope**2 / (4 * bend)),
                inside=bool(x.min() <= lowest <= x.max()),
            )
        )
    return found


def _columns(points: Sequence[Point]) -> tuple[Column, Column, Column]:
    """log N, log D and log L of the runs."""
    rows = np.array([[one.parameters, one.tokens, one.loss] for one in points], dtype=float)
    return np.log(rows[:, 0]), np.log(rows[:, 1]), np.log(rows[:, 2])


def _starts(n: Column, d: Column, loss: Column) -> list[Column]:
    """For each α and β of a grid the best E, A and B of at least zero, which is a linear problem; the best of these."""
    from scipy.optimize import nnls

    found = []
    for alpha, beta in product(GRID, GRID):
        # Scaled to the middle of the ladder, so that the columns are alike; divided by L, so that errors are relative.
        columns = np.stack([np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean())), np.ones_like(n)], axis=1)
        sizes, error = nnls(columns / np.exp(loss)[:, None], np.ones_like(n))
        a, b, e = np.log(np.maximum(sizes, 1e-9))
        found.append((error, [a + alpha * n.mean(), b + beta * d.mean(), e, alpha, beta]))
    return [np.array(start) for _, start in sorted(found)[:STARTS]]


def _descend(start: Column, n: Column, d: Column, loss: Column) -> Any:
    """The least squares of log L from a start, large residuals by their size: log A, log B, log E, α, β."""
    from scipy.optimize import least_squares

    def terms(x: Column) -> Column:
        return np.stack([x[0] - x[3] * n, x[1] - x[4] * d, np.full_like(n, x[2])])

    def residuals(x: Column) -> Column:
        return np.asarray(np.logaddexp.reduce(terms(x), axis=0)) - loss

    def slopes(x: Column) -> Column:
        parts = terms(x)
        of_a, of_b, of_e = np.exp(parts - np.logaddexp.reduce(parts, axis=0))
        return np.stack([of_a, of_b, of_e, -of_a * n, -of_b * d], axis=1)

    least = loss.min()
    low = np.array([-np.inf, -np.inf, least - FLOOR, EXPONENTS[0], EXPONENTS[0]])
    high = np.array([np.inf, np.inf, least, EXPONENTS[1], EXPONENTS[1]])
    margin = 1e-6
    start = np.clip(start, low + margin, high - margin)
    return least_squares(residuals, start, slopes, (low, high), loss="huber", f_scale=HUBER, x_scale="jac")


def _law(x: Column) -> Law:
    a, b, e = np.exp(x[:3])
    return Law(A=float(a), B=float(b), E=float(e), alpha=float(x[3]), beta=float(x[4]))
