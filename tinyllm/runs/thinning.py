"""Curves for the eye: thinned to the pixels of a chart without losing an extreme, and smoothed."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def m4(x: Array, y: Array, columns: int) -> NDArray[np.int64]:
    """The points of a curve that a chart of ``columns`` pixel columns needs: first, lowest, highest, last of each.

    The line through them covers the same pixels as the line through all points (Jugel et al., M4: A
    Visualization-Oriented Time Series Data Aggregation, VLDB 2014). No value is invented or averaged, so a spike of a
    single step stays. Of the values that are not finite, the first in each pixel column stays, and breaks the line.

    Args:
        x: positions in ascending order.
        y: values, NaN where there is none.
        columns: pixel columns between the first and the last position.

    Returns:
        The positions of the kept points in the arrays, ascending.
    """
    if len(x) <= 4 * columns:
        return np.arange(len(x))
    span = x[-1] - x[0]
    column = (
        np.minimum((x - x[0]) / span * columns, columns - 1).astype(np.int64) if span > 0 else np.zeros(len(x), int)
    )
    finite = np.flatnonzero(np.isfinite(y))
    # Sorted by column, then value: the ends of each group are its extremes. lexsort is stable, so ties keep the first.
    by_value = finite[np.lexsort((y[finite], column[finite]))]
    kept = [*_ends(finite, column), *_ends(by_value, column)]
    broken = np.flatnonzero(~np.isfinite(y))
    kept += _ends(broken, column)[:1]
    return np.unique(np.concatenate(kept))


def _ends(points: NDArray[np.int64], column: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The first and the last point of each group of points in one column."""
    if not len(points):
        return [points, points]
    changes = np.flatnonzero(np.diff(column[points]))
    return [points[np.concatenate(([0], changes + 1))], points[np.concatenate((changes, [len(points) - 1]))]]


def smoothed(y: Array, weight: float) -> Array:
    """The exponential moving average of a curve, with Adam's correction of its start; values that are not finite stay.

    Args:
        y: values in order; NaN where there is none.
        weight: of the average before each value, from 0 (no smoothing) to less than 1.
    """
    if weight <= 0:
        return y
    out, average, total = y.copy(), 0.0, 0.0
    for position in np.flatnonzero(np.isfinite(y)):
        average = weight * average + (1 - weight) * y[position]
        total = weight * total + (1 - weight)
        out[position] = average / total
    return out
