"""Which files a path names: itself, all in a folder, or the matches of a glob; each file once."""

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
from tinyllm.utils.files import in_home

Inode = tuple[int, int]
"""Device and number: the same for all names of a file."""


@dataclass
class Listing:
    """What a path names.

    Attributes:
        files: at least one, each once, in an order that does not depend on where the folder lies.
        is_folder: whether the path is a folder, of which files that do not belong are left out.
        left_out: how many entries were passed over, by what they are.
    """

    files: list[FoundFile]
    is_folder: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


class _Name(NamedTuple):
    """A name that leads to a file; ``linked`` if a symbolic link is on the way."""

    path: str
    linked: bool
    status: os.stat_result


def find_files(path: str, *, key: str, suffixes: Sequence[Sequence[str]] = ()) -> Listing:
    """The files that ``path`` names: itself, everything in a folder, or the matches of a glob (``**`` too).

    What exists is taken literally, also a folder with glob characters in its name on the way to a pattern.
    Hidden files and folders are passed over in folders and globs. Symbolic links to folders are followed, and
    each folder is entered once, so loops end; a file with several names counts once, by one that no symbolic
    link is part of if there is one.

    Args:
        key: the config key, for errors.
        suffixes: of a folder take only files that end like this, in whatever case: those of the first group
            of which there is any; empty: all.

    Raises:
        UserError: nothing is there, or a folder cannot be read.
    """
    if not path.strip():
        raise UserError("no path is given", key=key, value=path, hint="a file, a folder or a glob")
    try:
        path.encode()
    except UnicodeEncodeError:  # the yaml files of a run have no way to write it, and none to be resumed from
        hint = "its name is not UTF-8; rename it, or use a glob with a ? for each such byte"
        raise UserError("the settings of a run cannot hold this path", key=key, value=path, hint=hint) from None
    place = in_home(path)
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
            wanted = " or ".join(suffixes[0]) if suffixes else "text"
            raise UserError(f"the folder holds no {wanted} file", key=key, value=path, hint=_what_there_is(names))
        return Listing(_once(chosen), is_folder=True, left_out=search.left_out)
    if glob.has_magic(str(place)):
        names = list(search.matches(place))
        if not names:
            raise UserError("no file matches", key=key, value=path, hint="check the pattern, and quote it in the shell")
        return Listing(_once(names), left_out=search.left_out)
    if os.path.lexists(place):
        raise UserError("not a readable file or folder", key=key, value=path, hint=_what_it_is(place))
    raise UserError("no such file or folder", key=key, value=path, hint=_nearest(place))


class _Search:
    """Walks folders; counts what it passes over."""

    def __init__(self, key: str, value: str) -> None:
        self._key, self._value = key, value
        self.left_out: Counter[str] = Counter()

    def below(self, folder: str) -> Iterator[_Name]:
        """All files below a folder, some by several names."""
        for current, linked, entries in self._folders(folder):
            yield from self._files(current, linked, entries)

    def matches(self, pattern: Path) -> Iterator[_Name]:
        """All files that match a pattern, some by several names."""
        parts = list(pattern.parts)
        start = parts.pop(0) if pattern.is_absolute() else ""
        yield from self._expand(start, parts, False)

    def _expand(self, base: str, parts: Sequence[str], linked: bool) -> Iterator[_Name]:
        """What the parts of a pattern name below a folder; an empty ``base`` is the current one."""
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
        """A folder and all below, each once: its path, whether a symbolic link leads there, its entries.

        Links wait until every real folder was visited, so that what is in both is found under its real name.
        A link to a folder that holds ``start`` is a loop like any other.
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
                    self.left_out["links to nowhere"] += 1
                continue  # or gone since it was listed
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise self._refusal(entry.path, error) from None
                self.left_out["links to nowhere"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                if not status.st_ino:  # Windows tells the number only when asked by name
                    status = os.stat(entry.path)
                yield _Name(prefix + entry.name, linked or entry.is_symlink(), status)
            elif not stat.S_ISDIR(status.st_mode):
                self.left_out["pipes, sockets and devices"] += 1

    def _scan(self, folder: str, *, hidden: bool = False) -> list[os.DirEntry[str]]:
        """The entries of a folder by name, hidden ones on demand. Raises UserError if it cannot be read."""
        try:
            with os.scandir(folder or os.curdir) as entries:
                shown = [entry for entry in entries if hidden or not entry.name.startswith(".")]
        except FileNotFoundError:  # gone since it was listed
            return []
        except OSError as error:
            raise self._refusal(folder or os.curdir, error) from None
        return sorted(shown, key=lambda entry: entry.name)

    def _refusal(self, folder: str, error: OSError) -> UserError:
        hint = f"{folder}: {error.strerror}; make it readable, or name the files by a glob"
        return UserError("a folder cannot be read", key=self._key, value=self._value, hint=hint)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def _once(names: Sequence[_Name]) -> list[FoundFile]:
    """Each file by one of its names: one without links, then the first."""
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
    """The commonest endings of the files of a folder."""
    if not names:
        return "hidden files do not count; a file or a glob may be given instead"
    endings = Counter(os.path.splitext(name.path)[1] or "without an ending" for name in names)
    shown = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(3))
    return f"it holds {shown}; a file or a glob may be given instead"


def _what_it_is(place: Path) -> str:
    """What a path is that is neither a file nor a folder."""
    try:
        mode = os.stat(place).st_mode
    except OSError as error:
        return f"a link that leads nowhere: {error.strerror}"
    if stat.S_ISFIFO(mode):
        return "a pipe, and the data are read several times; write them to a file first"
    return "a socket or a device; write the data to a file first"


def _nearest(place: Path) -> str:
    folder = place.absolute().parent
    while not os.path.isdir(folder):
        folder = folder.parent
    if not os.access(folder, os.X_OK):
        return f"{folder} may not be entered"
    return f"{folder} exists, but not {place.absolute().relative_to(folder)}"
