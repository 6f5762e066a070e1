"""Tasks: facts about the standard library of the running Python."""

import inspect
from collections import Counter
from functools import cache
from importlib import import_module

from tinyllm.data.tasks.problem import Dice, Family, Problem, worded

MODULES = (
    *("argparse", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "codecs", "collections", "colorsys"),
    *("configparser", "contextlib", "copy", "csv", "datetime", "difflib", "dis", "email", "enum", "filecmp"),
    *("fileinput", "fnmatch", "fractions", "functools", "getpass", "gettext", "glob", "gzip", "hashlib", "heapq"),
    *("hmac", "html", "imaplib", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache"),
    *("locale", "logging", "lzma", "math", "mimetypes", "operator", "os", "pathlib", "pickle", "pkgutil"),
    *("platform", "plistlib", "pprint", "queue", "random", "re", "sched", "secrets", "shlex", "shutil"),
    *("signal", "smtplib", "socket", "stat", "statistics", "string", "struct", "subprocess", "sysconfig", "tarfile"),
    *("tempfile", "textwrap", "threading", "time", "timeit", "tokenize", "traceback", "types", "unicodedata", "uuid"),
    *("warnings", "wave", "weakref", "zipfile", "zlib"),
)
LONGEST = 48
"""Characters of a list of parameters; longer ones do not fit a small model's context."""


class Lookups(Family):
    """Which module defines a name, and the parameters of a function. A model must know them: no tool tells."""

    name = "lookups"

    def draw(self, dice: Dice, *, unseen: bool) -> Problem:
        operation = dice.of(("module", "parameters"))
        name, answer = dice.of(modules() if operation == "module" else parameters())
        return Problem(
            family=self.name,
            key=f"{operation}|{name}",
            question=worded(operation, dice, unseen=unseen, n=name),
            answer=answer,
        )


@cache
def modules() -> tuple[tuple[str, str], ...]:
    """(name, module) of every public name that exactly one of the modules defines."""
    found = [(name, module) for module, names in _public().items() for name in names]
    times = Counter(name for name, _ in found)
    return tuple(sorted((name, module) for name, module in found if times[name] == 1))


@cache
def parameters() -> tuple[tuple[str, str], ...]:
    """(module.function, parameters separated by commas) of every public function with some."""
    return tuple(
        sorted(
            (f"{module}.{name}", shown)
            for module, names in _public().items()
            for name, value in names.items()
            if inspect.isroutine(value) and (shown := _parameters(value)) and len(shown) <= LONGEST
        )
    )


@cache
def _public() -> dict[str, dict[str, object]]:
    """The functions and classes that each module defines itself and shows."""
    public: dict[str, dict[str, object]] = {}
    for name in MODULES:
        try:
            module = import_module(name)
        except ImportError:  # left out of some builds of Python
            continue
        shown = getattr(module, "__all__", [each for each in vars(module) if not each.startswith("_")])
        values = {each: getattr(module, each, None) for each in shown}
        public[name] = {
            each: value
            for each, value in values.items()
            if callable(value) and getattr(value, "__module__", None) in (name, f"_{name}")
        }
    return public


def _parameters(function: object) -> str:
    """The names of a function's parameters; empty: it has none, or does not tell."""
    try:
        return ", ".join(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
