"""Corpus of Python code: the sources of the standard library, present on every machine."""

import os
import sysconfig
from functools import partial
from pathlib import Path

from tinyllm.data.content_hashes import ContentHashes, FoundFile, stamp
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.text import documents_of
from tinyllm.errors import UserError

# Excluded: tests, installed packages, generated tables, and packages that some systems distribute separately, so that
# the corpus is the same everywhere.
EXCLUDED_FOLDERS = {
    "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload",
    "lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
EXCLUDED_FILES = {"sitecustomize.py", "turtle.py", "usercustomize.py"}


class StdlibCorpus(Corpus):
    """The ``.py`` files of the standard library of the running Python, each a document."""

    def __init__(self, *, val_fraction: float, packing: str = "concat") -> None:
        super().__init__(val_fraction=val_fraction, packing=packing)

    def check(self) -> None:
        source_files()

    def open(self, hashes: ContentHashes) -> Source:
        files = source_files()
        contents = hashes.of([FoundFile(str(file), stamp(file)) for file in files])
        digests = [contents[str(file)].digest.hex() for file in files]
        return Source(
            fingerprint=fingerprint_of("stdlib", digests, self.val_fraction),
            documents=partial(documents_of, list(contents), contents, "strict"),
            size=sum(content.size for content in contents.values()),
        )


def source_files() -> list[Path]:
    """The source files of the standard library in a fixed order. Raises UserError if this Python has none."""
    library = Path(sysconfig.get_path("stdlib"))
    files = []
    for root, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith("config-")]
        files += [
            Path(root, name)
            for name in names
            if name.endswith(".py") and name not in EXCLUDED_FILES and not name.startswith("_sysconfigdata")
        ]
    if not files:
        raise UserError(
            "this Python comes without the sources of its standard library", file=library, hint="use dataset=text"
        )
    return sorted(files, key=lambda file: file.relative_to(library).as_posix())
