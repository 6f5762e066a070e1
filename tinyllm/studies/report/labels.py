"""Placement of the arms' names in a picture, without overlaps."""

from itertools import pairwise
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from tinyllm.errors import one_line

Point = tuple[float, float]


def shortened(name: str, length: int = 26) -> str:
    """A name of at most ``length`` characters. The middle is left out, because names of arms differ at their ends."""
    name = one_line(name)
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def spread(wanted: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions between ``low`` and ``high``, close to the wanted ones, in their order and at least ``gap`` apart.

    If they do not all fit, the gap shrinks. Colliding neighbours move as a group around their common mean: the
    pool-adjacent-violators algorithm of isotonic regression.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    groups: list[list[float]] = []  # positions minus the gaps below them, so that colliding ones are equal
    for rank, place in enumerate(order):
        groups.append([wanted[place] - rank * gap])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    top = high - gap * max(0, len(wanted) - 1)
    flat = [min(max(_mean(group), low), top) for group in groups for _ in group]
    positions = [0.0] * len(wanted)
    for rank, place in enumerate(order):
        positions[place] = flat[rank] + rank * gap
    return positions


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def place_names(
    axes: Any,
    points: list[Point],
    names: list[str],
    colours: list[str],
    gids: list[str],
    *,
    avoid: list[list[Point]],
) -> list[Any]:
    """Write a name beside each point, where it covers the fewest other names, points and lines.

    Call it once the axes have their final limits.

    Args:
        avoid: paths of horizontal and vertical lines.

    Returns:
        The labels as matplotlib text objects.
    """
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw_without_rendering()
    pixels = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for path in avoid:
        corners = [axes.transData.transform(corner) for corner in path]
        for (x0, y0), (x1, y1) in pairwise(corners):
            taken.append(Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    frame = axes.get_window_extent(renderer)
    texts = []
    for point, name, colour, gid in zip(points, names, colours, gids, strict=True):
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", color=colour, fontsize=8.5)
        text.set_gid(gid)
        candidates: list[Any] = []
        for distance in (7, 15, 24, 34):
            for dx, dy, ha, va in _AROUND:
                text.set(position=(dx * distance, dy * distance), ha=ha, va=va)
                box = text.get_window_extent(renderer).padded(1)
                hits = sum(box.overlaps(other) for other in taken)
                outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
                # Leaving the axes is less bad than covering something; among equals, the nearest place wins.
                cost = hits + 0.6 * outside + distance / 100
                candidates.append((cost, len(candidates), (dx, dy, ha, va, distance), box))
        _, _, (dx, dy, ha, va, distance), box = min(candidates)
        text.set(position=(dx * distance, dy * distance), ha=ha, va=va)
        taken.append(box)
        texts.append(text)
    return texts


_AROUND = (
    # dx, dy in units of the distance, and the alignment of the text; the preferred place first
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (1, 0, "left", "center"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
)
