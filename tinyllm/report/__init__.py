"""What a comparison's :class:`~tinyllm.study.results.Study` looks like: a page, Markdown, tables, a terminal."""

from tinyllm.report.sending import send
from tinyllm.report.terminal import show
from tinyllm.report.writing import write_report

__all__ = ["send", "show", "write_report"]
