"""Styles of arms. Color, marker and line differ together, which works even in print and for color-blind readers.

The colours are those of Okabe and Ito (Color Universal Design, 2008), darkened where white paper needs it, and four
more. Each has a lighter variant for dark pages.
"""

from dataclasses import dataclass
from typing import Any

INK, SOFT, GRID, PAPER = "#1b1f24", "#5c6670", "#dfe3e8", "#ffffff"
"""Colors of text, axes, grid and background."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colors, marker and line style of an arm."""

    light: str
    """Color on a white background."""
    dark: str
    """Color on a dark background."""
    marker: str
    dashes: Any
    """matplotlib's line style."""


_DASHED, _DOTTED, _MIXED = (0, (5, 1.8)), (0, (1.2, 1.6)), (0, (6, 1.6, 1.2, 1.6))
_STYLES = (
    Style(light="#24292f", dark="#e6e9ec", marker="o", dashes="-"),
    Style(light="#0072b2", dark="#58b4f0", marker="s", dashes=_DASHED),
    Style(light="#d55e00", dark="#ff914d", marker="^", dashes=_MIXED),
    Style(light="#009e73", dark="#3ccfa4", marker="D", dashes="-"),
    Style(light="#b0578d", dark="#e5a0cb", marker="v", dashes=_DASHED),
    Style(light="#c28100", dark="#f2b63c", marker="P", dashes=_MIXED),
    Style(light="#3f95c9", dark="#9fd8ff", marker="X", dashes="-"),
    Style(light="#857c00", dark="#e6dc55", marker="<", dashes=_DASHED),
    Style(light="#882255", dark="#dd7ba6", marker=">", dashes=_MIXED),
    Style(light="#4b3fa8", dark="#a99cf5", marker="p", dashes=_DOTTED),
    Style(light="#7d4f24", dark="#cfa477", marker="h", dashes=_DASHED),
    Style(light="#6b7580", dark="#a9b3bd", marker="*", dashes=_DOTTED),
)


def style(number: int) -> Style:
    """Style of the arm with this number; the twelve styles repeat."""
    return _STYLES[number % len(_STYLES)]


def styles(count: int) -> list[Style]:
    """Styles that ``count`` arms need."""
    return list(_STYLES[: min(count, len(_STYLES))])


SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinyllm",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 9.5,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "lines.solid_capstyle": "round",
}
"""matplotlib settings of the pictures: text stays text, and the same data gives the same bytes."""
