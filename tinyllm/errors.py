"""The exceptions that are meant for the person at the keyboard."""

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


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as one space, and control characters spelled out.

    A value or a file name out of a stranger's directory is part of many messages; none may command the terminal.
    """
    return plain(" ".join(text.split()))


def setting(key: str, value: object) -> str:
    """``key=value`` as one types it on the command line."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={value}"
