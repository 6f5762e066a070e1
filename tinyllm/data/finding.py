"""Finding files: the path itself, all files of a folder, or the matches of a glob; each file once."""

import errno
import fnmatch
import glob
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tinyllm.data.content_hashes import FoundFile, stamp_of
from tinyllm.errors import UserError
from tinyllm.utils.files import expand_home

Inode = tuple[int, int]
"""Device and inode number, which identify a file whatever its name."""


@dataclass
class Listing:
    """The files that a path names.

    Attributes:
        files: at least one, each once, in an order that does not depend on the location of the folder.
        is_folder: whether the path is a folder, of which only suitable files are taken.
        left_out: number of skipped entries, by kind.
    """

    files: list[FoundFile]
    is_folder: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


class _Name(NamedTuple):
    """A path of a file; ``linked`` if a symbolic link is part of it."""

    path: str
    linked: bool
    status: os.stat_result


def find_files(path: str, *, key: str, suffixes: Sequence[Sequence[str]] = ()) -> Listing:
    """The files that ``path`` names: itself, all files below a folder, or the matches of a glob (with ``**``).

    An existing path is taken literally, even if its name contains glob characters. The same holds for a folder within a
    pattern. Hidden files and folders are skipped in folders and globs. Symbolic links to folders are followed, but each
    folder is entered once, so loops end. A file reachable by several paths is listed once, under a path without
    symbolic links if there is one.

    Args:
        key: configuration key, for error messages.
        suffixes: groups of extensions, case-insensitive. For a folder, only files of the first group that matches
            anything are taken; empty: all files.

    Raises:
        UserError: there is no file, or a folder cannot be read.
    """
    if not path.strip():
        raise UserError("empty path", key=key, value=path, hint="a file, a folder or a glob")
    try:
        path.encode()
    except UnicodeEncodeError:  # the yaml files of a run could not store the path, so no run could be resumed
        hint = "it is not UTF-8; rename it, or use a glob with a ? for each such byte"
        raise UserError("the settings of a run cannot store this path", key=key, value=path, hint=hint) from None
    place = expand_home(path)
    try:
        status = os.stat(place)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        status = None
    if status is not None and stat.S_ISREG(status.st_mode):
        return Listing([FoundFile(str(place), stamp_of(status))])
    search = _Search(key, path)
    if status is not None and stat.S_ISDIR(status.st_mode):
        names = list(search.below("" if place == Path() else str(place)))
        chosen = _with_suffix(names, suffixes)
        if not chosen:
            plain = [suffix for suffix in suffixes[0] if suffix.count(".") == 1] if suffixes else ["text"]
            wanted = " or ".join(plain)
            raise UserError(f"the folder contains no {wanted} file", key=key, value=path, hint=_what_there_is(names))
        return Listing(_once(chosen), is_folder=True, left_out=search.left_out)
    if glob.has_magic(str(place)):
        names = list(search.matches(place))
        if not names:
            raise UserError(
                "no file matches", key=key, value=path, hint="check the pattern, and quote it for the shell"
            )
        return Listing(_once(names), left_out=search.left_out)
    if os.path.lexists(place):
        raise UserError("not a readable file or folder", key=key, value=path, hint=_what_it_is(place))
    raise UserError("no such file or folder", key=key, value=path, hint=_nearest(place))


class _Search:
    """Walks folders, and counts skipped entries."""

    def __init__(self, key: str, value: str) -> None:
        self._key, self._value = key, value
        self.left_out: Counter[str] = Counter()

    def below(self, folder: str) -> Iterator[_Name]:
        """All files below a folder, possibly the same file under several paths."""
        for current, linked, entries in self._folders(folder):
            yield from self._files(current, linked, entries)

    def matches(self, pattern: Path) -> Iterator[_Name]:
        """All files that match a pattern, possibly the same file under several paths."""
        parts = list(pattern.parts)
        start = parts.pop(0) if pattern.is_absolute() else ""
        yield from self._expand(start, parts, False)

    def _expand(self, base: str, parts: Sequence[str], linked: bool) -> Iterator[_Name]:
        """The files that the parts of a pattern match below ``base``; "" is the current folder."""
        part, *rest = parts
        if part == "**":
            for folder, through, entries in self._folders(base):
                if rest:
                    yield from self._expand(folder, rest, linked or through)
                else:
                    yield from self._files(folder, linked or through, entries)
            return
        literal = os.path.join(base, part)
        if os.path.lexists(literal) or not glob.has_magic(part):
            if rest and os.path.isdir(literal):
                yield from self._expand(literal, rest, linked or os.path.islink(literal))
            elif not rest and os.path.isfile(literal):
                yield _Name(literal, linked or os.path.islink(literal), os.stat(literal))
            return
        matching = re.compile(fnmatch.translate(os.path.normcase(part)))
        entries = [
            entry
            for entry in self._scan(base, hidden=part.startswith("."))
            if matching.match(os.path.normcase(entry.name))
        ]
        if not rest:
            yield from self._files(base, linked, entries)
            return
        for entry in entries:
            if _is_folder(entry):
                yield from self._expand(os.path.join(base, entry.name), rest, linked or entry.is_symlink())

    def _folders(self, start: str) -> Iterator[tuple[str, bool, list[os.DirEntry[str]]]]:
        """A folder and all folders below, each once: its path, whether a symbolic link is part of it, its entries.

        Links are followed after all real folders, so that a folder that is both is found under its real path. A link to
        a parent of ``start`` counts as a loop.
        """
        visited: set[Inode] = set()
        for parent in Path(os.path.realpath(start)).parents:
            with suppress(OSError):
                visited.add(_inode(os.stat(parent)))
        folders, links = deque([start]), deque[str]()
        while folders or links:
            linked = not folders
            folder = links.popleft() if linked else folders.popleft()
            try:
                inode = _inode(os.stat(folder or os.curdir))
            except FileNotFoundError:  # gone since it was listed
                continue
            except OSError as error:
                raise self._refusal(folder, error) from None
            if inode in visited:
                continue
            visited.add(inode)
            entries = self._scan(folder)
            yield folder, linked, entries
            for entry in entries:
                if _is_folder(entry):
                    below = links if linked or entry.is_symlink() else folders
                    below.append(os.path.join(folder, entry.name))

    def _files(self, folder: str, linked: bool, entries: Iterable[os.DirEntry[str]]) -> Iterator[_Name]:
        prefix = os.path.join(folder, "")
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink():
                    self.left_out["broken links"] += 1
                continue  # or gone since it was listed
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise self._refusal(entry.path, error) from None
                self.left_out["broken links"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                if not status.st_ino:  # Windows gives the inode number only for a path
                    status = os.stat(entry.path)
                yield _Name(prefix + entry.name, linked or entry.is_symlink(), status)
            elif not stat.S_ISDIR(status.st_mode):
                self.left_out["pipes, sockets and devices"] += 1

    def _scan(self, folder: str, *, hidden: bool = False) -> list[os.DirEntry[str]]:
        """The entries of a folder sorted by name. Raises UserError if it cannot be read."""
        try:
            with os.scandir(folder or os.curdir) as entries:
                shown = [entry for entry in entries if hidden or not entry.name.startswith(".")]
        except FileNotFoundError:  # gone since it was listed
            return []
        except OSError as error:
            raise self._refusal(folder or os.curdir, error) from None
        return sorted(shown, key=lambda entry: entry.name)

    def _refusal(self, folder: str, error: OSError) -> UserError:
        hint = f"{folder}: {error.strerror}; make it readable, or select the files with a glob"
        return UserError("cannot read a folder", key=self._key, value=self._value, hint=hint)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without access
        return False


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def _once(names: Sequence[_Name]) -> list[FoundFile]:
    """Each file once, under one of its paths: preferably one without links, then the first in order."""
    best: dict[Inode, _Name] = {}
    for name in sorted(names, key=lambda name: (name.linked, name.path)):
        best.setdefault(_inode(name.status), name)
    chosen = sorted(best.values(), key=lambda name: name.path.replace(os.sep, "/"))
    return [FoundFile(name.path, stamp_of(name.status)) for name in chosen]


def _with_suffix(names: Sequence[_Name], groups: Sequence[Sequence[str]]) -> Sequence[_Name]:
    for suffixes in groups:
        if chosen := [name for name in names if name.path.lower().endswith(tuple(suffixes))]:
            return chosen
    return [] if groups else names


def _what_there_is(names: Sequence[_Name]) -> str:
    """A hint that names the most frequent file extensions of a folder."""
    if not names:
        return "hidden files are ignored; give a file or a glob instead"
    extensions = Counter(os.path.splitext(name.path)[1] or "without an extension" for name in names)
    shown = ", ".join(f"{count:,} {extension}" for extension, count in extensions.most_common(3))
    return f"it contains {shown}; give a file or a glob instead"


def _what_it_is(place: Path) -> str:
    """A hint on a path that is neither a file nor a folder."""
    try:
        mode = os.stat(place).st_mode
    except OSError as error:
        return f"a broken link: {error.strerror}"
    if stat.S_ISFIFO(mode):
        return "a pipe cannot be read several times; write the data to a file first"
    return "a socket or a device; write the data to a file first"


def _nearest(place: Path) -> str:
    folder = place.absolute().parent
    while not os.path.isdir(folder):
        folder = folder.parent
    if not os.access(folder, os.X_OK):
        return f"no permission to enter {folder}"
    return f"{folder} exists, but not {place.absolute().relative_to(folder)}"
