"""Where the names of arms stand in a picture, so that none lies on another."""

from itertools import pairwise
from typing import Any

from tinyllm.studies.report.numbers import line


def shortened(name: str, length: int = 26) -> str:
    """A name that fits into a picture; of a long one the middle is left out, as names differ at their ends."""
    name = line(name)
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def spread(wanted: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, near the wanted ones and in their order, between ``low`` and ``high``.

    Where they do not all fit, the gap is what the room allows. Neighbours that collide are moved as one group around
    their common mean (the pool-adjacent-violators algorithm of isotonic regression).
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    groups: list[list[float]] = []  # of what is left of a position when the gaps below it are taken away
    for rank, place in enumerate(order):
        groups.append([wanted[place] - rank * gap])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    top = high - gap * max(0, len(wanted) - 1)
    flat = [min(max(_mean(group), low), top) for group in groups for _ in group]
    found = [0.0] * len(wanted)
    for rank, place in enumerate(order):
        found[place] = flat[rank] + rank * gap
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def place_names(
    axes: Any,
    points: list[tuple[float, float]],
    names: list[str],
    colours: list[str],
    gids: list[str],
    *,
    avoid: list[list[tuple[float, float]]],
) -> list[Any]:
    """Write a name beside each point, wherever around it the fewest other names, points and lines are covered.

    The axes have their final limits.

    Args:
        avoid: lines of horizontal and vertical pieces.

    Returns:
        The texts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw_without_rendering()
    middles = [axes.transData.transform(point) for point in points]
    taken = [_box(x - 5, y - 5, x + 5, y + 5) for x, y in middles]
    for path in avoid:
        corners = [axes.transData.transform(corner) for corner in path]
        for (x0, y0), (x1, y1) in pairwise(corners):
            taken.append(_box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    frame = axes.get_window_extent(renderer)
    texts = []
    for point, name, colour, gid in zip(points, names, colours, gids, strict=True):
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", color=colour, fontsize=8.5)
        text.set_gid(gid)
        tried: list[Any] = []
        for distance in (7, 15, 24, 34):
            for dx, dy, ha, va in _AROUND:
                text.set(position=(dx * distance, dy * distance), ha=ha, va=va)
                box = text.get_window_extent(renderer).padded(1)
                hits = sum(box.overlaps(other) for other in taken)
                outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
                tried.append((hits + 0.6 * outside + distance / 100, len(tried), (dx, dy, ha, va, distance), box))
        _, _, (dx, dy, ha, va, distance), box = min(tried)
        text.set(position=(dx * distance, dy * distance), ha=ha, va=va)
        taken.append(box)
        texts.append(text)
    return texts


_AROUND = (
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (1, 0, "left", "center"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
)


def _box(x0: float, y0: float, x1: float, y1: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x0, y0, x1, y1)
