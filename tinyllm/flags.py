"""Programs that look at run directories take flags instead of settings; their mistakes are one line too."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import tinyllm
from tinyllm.errors import UserError

USER_ERROR, INTERRUPTED = 2, 130


class Flags(argparse.ArgumentParser):
    """The flags of ``python -m tinyllm.<program>``.

    Args:
        program: its name.
        description: what it does.
        epilog: examples.
    """

    def __init__(self, program: str, *, description: str, epilog: str = "") -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog=f"python -m tinyllm.{program}",
            description=description,
            epilog=epilog,
            formatter_class=layout,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"tinyllm {tinyllm.__version__}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line in one line.

        Raises:
            UserError: always.
        """
        raise UserError(message, hint="--help lists the flags")


def answer(work: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of ``work``; what a person can mend is one line and exit code 2."""
    try:
        code = work()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
