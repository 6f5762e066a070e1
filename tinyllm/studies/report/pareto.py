"""Which arms are worth their price: those that no other arm beats on both axes."""


def front(points: list[tuple[float, float]]) -> list[int]:
    """Places of the points that are dominated by none, in order of x. Less is better on both axes.

    A point is dominated by one that is no worse on either axis and better on one; of equal points all stay.
    """
    return sorted(
        (place for place, point in enumerate(points) if not any(_dominates(other, point) for other in points)),
        key=lambda place: points[place],
    )


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def steps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The border of what a front dominates, as corners of a staircase. ``points`` are in order of x."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners and corners[-1][1] != y:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners
