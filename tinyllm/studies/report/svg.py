"""Figures as SVG: one version for a file, on white, and one for inside the page, whose colours follow the page.

The ``gid`` of a matplotlib artist says what it shows: ``arm:2`` belongs to the arm of style 2; ``arm:2|title`` also has
a tooltip.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import matplotlib
from matplotlib.figure import Figure

from tinyllm.studies.report import theme

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_FONTS = "'DejaVu Sans', Verdana, 'Helvetica Neue', Arial, sans-serif"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered figure."""

    name: str
    """File name without suffix."""
    label: str
    """Text of the button that selects it in a group of pictures."""
    description: str
    """Alternative text."""
    file: str
    """SVG for a file, on white."""
    inline: str
    """SVG for inside the page."""


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the report's matplotlib settings, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(theme.SETTINGS)
        # matplotlib only measures strings with its font; the browser draws them with fonts that may have the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def picture(figure: Figure, *, name: str, label: str, description: str) -> Picture:
    """Render a figure; call it within :func:`drawing`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    _tidy(root, prefix=name)
    root.attrib |= {"role": "img", "aria-label": description}
    root.attrib |= {"class": "figure", "data-name": name}
    file = _text(root, xmlns=True)
    for background in [node for node in root.iter("g") if node.get("class") == "paper"]:
        background.clear()
    # The page scales pictures to its width; this is their natural width, 4/3 CSS pixels per point.
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.set("style", f"--width: {width * 4 / 3:.0f}px")
    return Picture(name=name, label=label, description=description, file=file, inline=_in_page_colours(_text(root)))


def _tidy(root: ET.Element, *, prefix: str) -> None:
    """Drop metadata and XML namespaces, make ids unique to the picture, turn gids into classes and titles."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    used: set[str] = set()
    for node in root.iter():
        node.tag = node.tag.removeprefix(_SVG)
        if (target := node.attrib.pop(f"{_XLINK}href", None)) is not None:
            node.set("href", target)
        used |= {target[1:]} if target and target.startswith("#") else set()
        used |= {name for text in node.attrib.values() for name in _REFERENCE.findall(text)}
    for node in root.iter():
        node_id = node.attrib.pop("id", None)
        if node_id in used:  # prefixed, because all pictures share the ids of one page
            node.set("id", f"{prefix}-{node_id}")
        elif node_id is not None:
            _mark(node, node_id)
        if (target := node.get("href", "")).startswith("#"):
            node.set("href", f"#{prefix}-{target[1:]}")
        for key, text in node.attrib.items():
            node.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", text))


def _mark(node: ET.Element, gid: str) -> None:
    """Turn a gid (see the module) into attributes for the page's script."""
    what, _, title = gid.partition("|")
    kind, _, number = what.partition(":")
    if what == "patch_1":  # matplotlib's first patch is the background of the figure
        node.set("class", "paper")
    elif kind == "arm":
        node.set("data-arm", number)
        node.set("class", "point" if title else "part")
    if title:
        text = ET.Element("title")
        text.text = title
        node.insert(0, text)


def _text(root: ET.Element, *, xmlns: bool = False) -> str:
    text = ET.tostring(root, encoding="unicode")
    text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) if xmlns else text
    return text.replace("'DejaVu Sans'", _FONTS) + "\n"


def _in_page_colours(text: str) -> str:
    """Replace colours by the page's CSS variables."""
    names = {theme.INK: "--ink", theme.SOFT: "--soft", theme.GRID: "--grid", theme.PAPER: "--paper"}
    names |= {style.light: f"--arm-{number}" for number, style in enumerate(theme.styles(12))}
    return re.sub("|".join(names), lambda colour: f"var({names[colour[0]]})", text)
