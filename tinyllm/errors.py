"""The exceptions that are meant for the person at the keyboard."""

import errno
import os

from tinyllm.utils.text import plain


class UserError(Exception):
    """Something the user can mend: printed as ``error: <what> (<where>): <hint>``, exit code 2, no traceback.

    Args:
        what: what is wrong, in a few words.
        key: the config path it concerns, e.g. ``"model.n_heads"``; shown with ``value``.
        value: the offending value of ``key``.
        file: the file it concerns, when there is no key.
        hint: what is allowed, or what to do.
    """

    def __init__(
        self, what: str, *, key: str | None = None, value: object = None, file: object = None, hint: str = ""
    ) -> None:
        self.what, self.key, self.value, self.file, self.hint = what, key, value, file, hint
        where = [setting(key, value)] if key else []
        where += [str(file)] if file is not None else []
        place = f" ({', '.join(where)})" if where else ""
        super().__init__(one_line(f"{what}{place}{': ' + hint if hint else ''}"))


class RankError(UserError):
    """What ended one rank of several, told at once and by that rank; other errors are told by rank 0 alone."""


_SHOWN = 200
"""Characters of a path in such a line."""


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as one space, and control characters spelled out.

    A value or a file name out of a stranger's directory is part of many messages; none may command the terminal.
    """
    return plain(" ".join(text.split()))


_REFUSED_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def about_path(error: Exception) -> UserError | None:
    """The line about a path that the file system does not take or does not let us at; None: another kind of error.

    A path may come from anywhere, and every look at one, ``is_dir`` too, raises this where a name in it is too long.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSED_PATHS or error.filename is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"
    return UserError(error.strerror or str(error), file=shown)


def setting(key: str, value: object) -> str:
    """``key=value`` as one types it on the command line."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={value}"
