"""Reports as one self-contained HTML page. It needs no network, no other file, and no script to be readable."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tinyllm.studies.report import theme
from tinyllm.studies.report.content import Report

_FILES = Path(__file__).parent


def page(report: Report) -> str:
    """Render a report. All text is escaped; only the pictures, the style sheet and the script are inserted as they are.

    The page's content security policy allows only the script with this hash.
    """
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FILES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        report=report,
        styles=theme.styles(max(1, len(report.legend))),
        css=(_FILES / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
    )
    return text.lstrip()  # the macros leave blank lines, which must not precede the doctype
