"""What a comparison's :class:`~tinyllm.study.results.Study` looks like: a page, Markdown, tables, a terminal."""

from tinyllm.report.writing import write_report

__all__ = ["write_report"]
