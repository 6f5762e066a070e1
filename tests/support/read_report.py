"""Parses reports for tests: tables, attributes and pictures of the page, tables of the Markdown file."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree as ET


@dataclass
class Page(HTMLParser):
    """A parsed HTML page."""

    text: str
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    """Triples (tag, name, value)."""
    tags: list[str] = field(default_factory=list)
    tables: dict[str, list[list[list[str]]]] = field(default_factory=dict)
    """Tables by section: rows of cell texts, headings first."""
    shown: str = ""
    """All text except style sheets and scripts."""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.section, self.in_cell = "", False
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
            self.in_cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag in ("style", "script"):
            return
        self.shown += data
        if self.in_cell:
            self.tables[self.section][-1][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def table(self, section: str, index: int = 0) -> dict[str, dict[str, str]]:
        """A table as nested dicts: row name → heading → cell."""
        headings, *rows = self.tables[section][index]
        return {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows}


def points(svg: str) -> dict[str, tuple[float, float]]:
    """Positions of a picture's marks, by tooltip."""
    positions = {}
    for group in ET.fromstring(svg).iter():
        if not group.get("class", "").startswith("point"):
            continue
        title = next(child.text for child in group if child.tag.endswith("title"))
        mark = next((node for node in group.iter() if node.tag.endswith("use")), None)
        if mark is not None and title is not None:
            positions[title] = (float(mark.attrib["x"]), float(mark.attrib["y"]))
    return positions


def markdown_rows(text: str) -> list[list[list[str]]]:
    """Tables of a Markdown text: rows of unescaped cell texts."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            tables[-1].append([re.sub(r"\\(.)", r"\1", cell.strip().strip("*")) for cell in cells])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]
