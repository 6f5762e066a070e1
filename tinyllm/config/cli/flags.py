"""Command-line flags of the programs that read run directories, with one-line errors."""

import argparse
import difflib
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import tinyllm
from tinyllm.config.targets import work_named
from tinyllm.errors import SIGNALLED, USER_ERROR, UserError, about_path
from tinyllm.utils.environment import log_level
from tinyllm.utils.streams import prepare_streams


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
        """Replaces argparse's usage text with a one-line error.

        Raises:
            UserError: always.
        """
        flag = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        similar = difflib.get_close_matches(flag, self._option_string_actions, n=1) if flag.startswith("-") else []
        raise UserError(message, hint=(f"did you mean {similar[0]}? " if similar else "") + "--help lists the flags")


def answer(parse_flags: Callable[[], argparse.Namespace], work: str) -> NoReturn:
    """Exit with the code of ``work``. A user error is reported as one line, with exit code 2.

    Args:
        work: a function ``module:name`` that takes the flags; imported once they are parsed.
    """
    prepare_streams()
    try:
        log_level()
        code = work_named(work)(parse_flags())
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR
    except OSError as error:
        if (refused := about_path(error)) is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = SIGNALLED + signal.SIGINT
    sys.exit(code)
