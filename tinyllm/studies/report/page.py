"""The report as one page of HTML that needs nothing else: no network, no other file, and no script to be read."""

import base64
import hashlib
from pathlib import Path

from tinyllm.studies.report import theme
from tinyllm.studies.report.content import Report

_HERE = Path(__file__).parent


def page(report: Report) -> str:
    """Fill the template. All text is escaped; only the pictures, the style and the script are not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        report=report,
        styles=theme.styles(len(report.arms)),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
    )
    return text.lstrip()
