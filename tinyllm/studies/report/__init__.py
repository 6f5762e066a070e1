"""Report of a :class:`~tinyllm.studies.compare.results.Study`: HTML, Markdown, CSV, terminal, wandb."""

from tinyllm.studies.report.sending import send
from tinyllm.studies.report.terminal import show
from tinyllm.studies.report.writing import write_report

__all__ = ["send", "show", "write_report"]
