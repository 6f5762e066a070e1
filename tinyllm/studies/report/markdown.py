"""Reports as Markdown; pictures are files in ``figures/`` beside it."""

import re

from tinyllm.studies.report.blocks import Block, Code, DataTable, Figures, Folded, Points, Section, Text
from tinyllm.studies.report.content import Report

_SPECIAL = re.compile(r"([\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|^[#>]|^[-+=](?=[-+=\s]|$))")
"""Characters with a meaning in Markdown; only these are escaped, so that the file stays readable as it is."""


def markdown(report: Report) -> str:
    """Render a report."""
    parts = [f"# {escaped(report.question)}", escaped(report.glance)]
    if report.verdicts:
        parts.append("\n".join(f"- **{escaped(verdict)}**" for verdict in report.verdicts))
    if report.notes:
        parts.append("\n".join(f"> - {escaped(note)}" for note in report.notes))
    for section in report.sections:
        parts += section_text(section)
    return "\n\n".join(parts) + "\n"


def section_text(section: Section, *, level: int = 2) -> list[str]:
    """Paragraphs of a section: its heading and its blocks."""
    return [f"{'#' * level} {escaped(section.title)}", *map(_block, section.blocks)]


def escaped(text: str) -> str:
    """Text on one line that Markdown shows literally."""
    text = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def _block(block: Block) -> str:
    match block:
        case DataTable():
            return _table(block)
        case Figures():
            pictures = [f"![{escaped(drawn.description)}](figures/{drawn.name}.svg)" for drawn in block.pictures]
            if block.choice:  # Markdown has no buttons, so all pictures but the first are collapsed
                others = zip(block.pictures[1:], pictures[1:], strict=True)
                pictures[1:] = [_details(f"{block.choice} {drawn.label}", text) for drawn, text in others]
            return "\n\n".join([*pictures, f"*{escaped(block.caption)}*"])
        case Text():
            return escaped(block.text)
        case Points():
            return "\n".join(f"- {escaped(item)}" for item in block.items)
        case Code():
            fenced = _fenced(block.text)
            return _details(block.title, fenced) if block.title else fenced
        case Folded():
            return _details(block.title, _table(block.table))


def _table(table: DataTable) -> str:
    rules = ["---" if is_text else "---:" for is_text in table.text_columns()]
    lines = ["| " + " | ".join(escaped(text) for text in table.headings) + " |", "|" + "|".join(rules) + "|"]
    for row in table.rows:
        cells = [f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n*{escaped(table.caption)}*" if table.caption else "")


def _fenced(text: str) -> str:
    """A fenced block of code; the fence is longer than any run of backquotes in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>\n\n{inside}\n\n</details>"
