"""The report as Markdown, for GitHub and for terminals; its pictures are files beside it."""

import re

from tinyllm.studies.report.blocks import Block, Code, Figures, Folded, Points, Table, Text
from tinyllm.studies.report.content import Report

_SPECIAL = re.compile(r"([\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|^[#>]|^[-+=](?=[-+=\s]|$))")
"""What Markdown would take for more than a letter; the rest is left as it is, for who reads the file itself."""


def markdown(report: Report) -> str:
    """The whole report; pictures are expected in ``figures/``."""
    parts = [f"# {escaped(report.question)}", escaped(report.glance)]
    if report.verdicts:
        parts.append("\n".join(f"- **{escaped(one)}**" for one in report.verdicts))
    if report.notes:
        parts.append("\n".join(f"> - {escaped(one)}" for one in report.notes))
    for section in report.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Figures():
            pictures = [f"![{escaped(one.description)}](figures/{one.name}.svg)" for one in block.pictures]
            if block.choice:
                others = zip(block.pictures[1:], pictures[1:], strict=True)
                pictures[1:] = [_details(f"{block.choice} {one.label}", text) for one, text in others]
            return "\n\n".join([*pictures, f"*{escaped(block.caption)}*"])
        case Text():
            return escaped(block.text)
        case Points():
            return "\n".join(f"- {escaped(one)}" for one in block.items)
        case Code():
            fenced = _fenced(block.text)
            return _details(block.title, fenced) if block.title else fenced
        case Folded():
            return _details(block.title, _table(block.table))


def _table(table: Table) -> str:
    marks = ["---" if words else "---:" for words in table.words()]
    lines = ["| " + " | ".join(escaped(text) for text in table.headings) + " |", "|" + "|".join(marks) + "|"]
    for row in table.rows:
        cells = [f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n*{escaped(table.caption)}*" if table.caption else "")


def _fenced(text: str) -> str:
    """A block of code, fenced with more backquotes than the text has in a row."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>\n\n{inside}\n\n</details>"
