"""The standard library's own sources: code that is on every machine."""

import os
import sysconfig
from functools import partial
from pathlib import Path

from tinyllm.data.content_hashes import ContentHashes, FoundFile, stamp
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.text import documents_of
from tinyllm.errors import UserError

# Left out: tests, what some systems package apart (the corpus is to be the same everywhere), what others
# installed, and tables that are not written by people.
LEFT_OUT_FOLDERS = {
    "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload",
    "lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
LEFT_OUT_FILES = {"sitecustomize.py", "turtle.py", "usercustomize.py"}


class StdlibCorpus(Corpus):
    """The ``.py`` files of the running Python's standard library, each a document."""

    def __init__(self, *, val_fraction: float) -> None:
        super().__init__(val_fraction=val_fraction)

    def check(self) -> None:
        source_files()

    def open(self, hashes: ContentHashes) -> Source:
        files = source_files()
        contents = hashes.of([FoundFile(str(file), stamp(file)) for file in files])
        marks = [contents[str(file)].digest.hex() for file in files]
        return Source(
            fingerprint=fingerprint_of("stdlib", marks, self.val_fraction),
            documents=partial(documents_of, list(contents), contents, "strict"),
            size=sum(content.size for content in contents.values()),
        )


def source_files() -> list[Path]:
    """The sources of the standard library in a fixed order. Raises UserError where it comes without sources."""
    library = Path(sysconfig.get_path("stdlib"))
    files = []
    for root, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS and not name.startswith("config-")]
        files += [
            Path(root, name)
            for name in names
            if name.endswith(".py") and name not in LEFT_OUT_FILES and not name.startswith("_sysconfigdata")
        ]
    if not files:
        raise UserError("this Python comes without the sources of its library", file=library, hint="use dataset=text")
    return sorted(files, key=lambda file: file.relative_to(library).as_posix())
