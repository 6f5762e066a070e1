"""A figure as SVG: a file of its own for print, and the same for inside a page, where its colours follow the page.

An artist's ``gid`` says what it shows: ``arm:2`` (or ``arm:2|title``) for what belongs to the arm of style 2. The
title is what a pointer over it reads.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from tinyllm.studies.report import theme

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_FONTS = "font-family", "'DejaVu Sans', Verdana, 'Helvetica Neue', Arial, sans-serif"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what stands beside it."""

    name: str
    """Of its file, without a suffix."""
    label: str
    """Chooses it among the pictures of a group."""
    description: str
    """What one who cannot see it should know."""
    file: str
    """SVG for a file, on white."""
    inline: str
    """SVG for inside a page."""


@contextmanager
def drawing() -> Iterator[None]:
    """Within it figures get the report's look. A letter that the measuring font lacks is no reason for a warning."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the person's own matplotlibrc says
        matplotlib.rcParams.update(theme.SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def picture(figure: Any, *, name: str, label: str, description: str) -> Picture:
    """Render a matplotlib figure; to be called within :func:`drawing`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    _tidy(root, prefix=name)
    root.attrib |= {"role": "img", "aria-label": description}
    root.attrib |= {"class": "figure", "data-name": name}
    file = _text(root, xmlns=True)
    for paper in [one for one in root.iter("g") if one.get("class") == "paper"]:
        paper.clear()
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.set("style", f"--width: {width * 4 / 3:.0f}px")
    return Picture(name=name, label=label, description=description, file=file, inline=_in_page_colours(_text(root)))


def _tidy(root: ET.Element, *, prefix: str) -> None:
    """Plain names, ids that are this picture's alone, titles and classes in the place of gids."""
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
        used |= {found for text in node.attrib.values() for found in _REFERENCE.findall(text)}
    for node in root.iter():
        mine = node.attrib.pop("id", None)
        if mine in used:
            node.set("id", f"{prefix}-{mine}")
        elif mine is not None:
            _mark(node, mine)
        if (target := node.get("href", "")).startswith("#"):
            node.set("href", f"#{prefix}-{target[1:]}")
        for key, text in node.attrib.items():
            node.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", text))


def _mark(node: ET.Element, gid: str) -> None:
    what, _, title = gid.partition("|")
    kind, _, number = what.partition(":")
    if what == "patch_1":  # the figure's background is the first patch
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
    return text.replace("'DejaVu Sans'", _FONTS[1]) + "\n"


def _in_page_colours(text: str) -> str:
    """The colours by the page's names for them."""
    names = {theme.INK: "--ink", theme.SOFT: "--soft", theme.GRID: "--grid", theme.PAPER: "--paper"}
    names |= {one.light: f"--arm-{number}" for number, one in enumerate(theme.styles(12))}
    replace: Callable[[re.Match[str]], str] = lambda found: f"var({names[found[0]]})"  # noqa: E731
    return re.sub("|".join(names), replace, text)
