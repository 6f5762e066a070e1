"""Writes the files of a report into a directory."""

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
"""Lists the files of the last report; no other file is ever replaced or removed."""
FIGURES = "figures"
SUFFIXES = {"": (".csv", ".md", ".html"), FIGURES: (".svg",)}
"""Suffixes of a report's files, by folder."""


def write_report(study: Study, directory: Path) -> None:
    """Write ``report.html``, ``report.md`` with ``figures/*.svg``, and the tables as CSV.

    Raises:
        OSError: the directory cannot be written.
        UserError: a file that no report wrote has one of these names.
    """
    content = report(study)
    files = {f"{FIGURES}/{picture.name}.svg": picture.file for picture in content.pictures}
    files |= csv_files(study)
    write_files(directory, files | {"report.md": markdown(content), "report.html": page(content)})


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write a report's files by name and remove files of the previous report that are not among them.

    The same contents give the same bytes. Each file is replaced atomically, so readers never see half a file. Files
    that no report wrote are left alone.

    Raises:
        OSError: the directory cannot be written.
        UserError: a file that no report wrote has one of the names, or ``figures`` is a symbolic link.
    """
    listing = directory / WRITTEN
    before = None  # first report; a study does not start in a directory that holds anything else
    if listing.is_file():
        before = {name for name in read_json(listing, of=list) if _is_report_file(name)}
    for name in files:
        if before is not None and name not in before and (directory / name).exists():
            hint = "move it away, or choose a different directory with out=<directory>"
            raise UserError("the report would overwrite a file that no report wrote", file=directory / name, hint=hint)
    figures = directory / FIGURES
    if figures.is_symlink():
        hint = "remove the link"
        raise UserError("the report's pictures would be written through a symbolic link", file=figures, hint=hint)
    figures.mkdir(parents=True, exist_ok=True)
    # Before the files themselves, so that the next report knows the files of one that was killed halfway.
    write_json(listing, sorted({*(before or ()), *files}))
    for name, text in files.items():
        write_text(directory / name, text)
    for name in sorted((before or set()) - files.keys()):
        if not (directory / name).is_dir():
            (directory / name).unlink(missing_ok=True)
    write_json(listing, sorted(files))


def _is_report_file(name: object) -> bool:
    """Whether a report could have written a file of this name. The listing is untrusted: it may have been edited."""
    if not isinstance(name, str):
        return False
    folder, _, file = name.rpartition("/")
    return is_file_name(file) and Path(file).suffix in SUFFIXES.get(folder, ())
