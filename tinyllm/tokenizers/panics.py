"""Errors and panics of the library ``tokenizers`` as lines for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from tinyllm.errors import UserError


@contextmanager
def told() -> Iterator[None]:
    """An error of the library, or a panic, as a line for people."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not is_panic(error) and not isinstance(error, Exception):
            raise
        hint = f"{first_line(error)}; use another tokenizer, or leave out what it fails on"
        raise UserError("the tokenizer fails on this text", hint=hint) from None


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # pyo3 gives no name to import


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
