"""Errors that the user can fix, shown as one line."""

import errno
import os

from tinyllm.utils.text import escape_control

USER_ERROR = 2
"""Exit code of a user error; a crash exits with 1."""
SIGNALLED = 128
"""Exit code of a process ended by a signal, minus the number of the signal."""


class UserError(Exception):
    """An error that the user can fix: printed as ``error: <what> (<where>): <hint>``, exit code 2, no traceback.

    Args:
        what: the problem, in a few words.
        key: the configuration key, e.g. ``"model.n_heads"``; shown with ``value``.
        value: the offending value of ``key``.
        file: the file or place where the problem is, if it is not a key.
        hint: the allowed values, or what to do.
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
    """An error of one rank of several, which that rank prints at once; other errors are printed by rank 0 alone."""


_LONGEST_SHOWN = 200
"""Characters of a path shown in an error."""


def one_line(text: str) -> str:
    """The text on one line: white space collapsed to single spaces, control characters escaped.

    Messages quote values and file names from untrusted files, which must not control the terminal.
    """
    return escape_control(" ".join(text.split()))


_REFUSED_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def about_path(error: Exception) -> UserError | None:
    """A path that the file system refuses (too long, not permitted, read-only) as a UserError; None: a different error.

    Any use of a path from the user can raise it: even ``is_dir`` raises for a name that is too long.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSED_PATHS or error.filename is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
    return UserError(error.strerror or str(error), file=shown)


def setting(key: str, value: object) -> str:
    """``key=value`` as typed on the command line."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={value}"
