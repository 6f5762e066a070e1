"""Puts the report of a study into its directory."""

from collections.abc import Mapping
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report.content import report
from tinyllm.studies.report.csv_files import csv_files
from tinyllm.studies.report.markdown import markdown
from tinyllm.studies.report.page import page
from tinyllm.utils.files import is_file_name, read_json, write_json, write_text

WRITTEN = ".report.json"
"""Names of the files that the last report wrote; only those are ever replaced or removed."""
FIGURES = "figures"
ENDINGS = {"": (".csv", ".md", ".html"), FIGURES: (".svg",)}
"""Endings of the files of a report, by folder."""


def write_report(study: Study, directory: Path) -> None:
    """Write ``report.html``, ``report.md`` with ``figures/*.svg``, and the tables as CSV.

    Raises:
        OSError: the directory cannot be written.
        UserError: a file of somebody else has one of the names.
    """
    shown = report(study)
    files = {f"{FIGURES}/{one.name}.svg": one.file for one in shown.pictures}
    files |= csv_files(study)
    write_files(directory, files | {"report.md": markdown(shown), "report.html": page(shown)})


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write a report's files by name, and remove those of the last report that this one does not have.

    The same texts give the same bytes. Each file is replaced at once, so whoever reads meanwhile sees a whole one.
    What the last report did not write is left alone.

    Raises:
        OSError: the directory cannot be written.
        UserError: a file of somebody else has one of the names, or ``figures`` is a link to another place.
    """
    known = directory / WRITTEN
    before = {name for name in read_json(known, of=list) if _is_of_a_report(name)} if known.is_file() else None
    for name in files:
        if before is not None and name not in before and (directory / name).exists():
            hint = "no report has written it; take it away, or choose another place with out=<directory>"
            raise UserError("a file is in the way of the report", file=directory / name, hint=hint)
    figures = directory / FIGURES
    if figures.is_symlink():
        raise UserError("the report's pictures would be written elsewhere", file=figures, hint="take the link away")
    figures.mkdir(parents=True, exist_ok=True)
    write_json(known, sorted({*(before or ()), *files}))  # first, so that a killed report knows its files again
    for name, text in files.items():
        write_text(directory / name, text)
    for name in sorted((before or set()) - files.keys()):
        if not (directory / name).is_dir():
            (directory / name).unlink(missing_ok=True)
    write_json(known, sorted(files))


def _is_of_a_report(name: object) -> bool:
    """Whether a report may have written a file of this name: the list of them is a file, and may be somebody else's."""
    if not isinstance(name, str):
        return False
    folder, _, file = name.rpartition("/")
    return is_file_name(file) and Path(file).suffix in ENDINGS.get(folder, ())
