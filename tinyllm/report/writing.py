"""Puts the report of a study into its directory."""

from pathlib import Path

from tinyllm.report.content import report
from tinyllm.report.csv_files import csv_files
from tinyllm.report.markdown import markdown
from tinyllm.report.page import page
from tinyllm.study.results import Study
from tinyllm.utils.files import write_text


def write_report(study: Study, directory: Path) -> None:
    """Write ``report.html``, ``report.md`` with ``figures/*.svg``, and the tables as CSV.

    The same study gives the same bytes. Each file is replaced at once, so whoever reads meanwhile sees a whole one;
    pictures and tables of an earlier report that this one does not have are removed.

    Raises:
        OSError: the directory cannot be written.
    """
    shown = report(study)
    files = {f"figures/{one.name}.svg": one.file for one in shown.pictures}
    files |= csv_files(study)
    files |= {"report.md": markdown(shown), "report.html": page(shown)}
    for name, text in files.items():
        write_text(directory / name, text)
    for old in [*(directory / "figures").glob("*.svg"), directory / "tuning.csv"]:
        if old.relative_to(directory).as_posix() not in files:
            old.unlink(missing_ok=True)
