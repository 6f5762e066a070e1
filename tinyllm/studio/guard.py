"""What the studio's forms may set: keys of ``conf/``, and paths below the folders that it was started with.

The same rules hold for everything that is checked or started, whichever page asks for it. They are stricter than those
of the command line, on which a person may do whatever the account may do.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyllm.config.quoting import PATH_KEYS
from tinyllm.errors import UserError
from tinyllm.studio.program import Settings
from tinyllm.utils.nested import flatten

PROGRAMS = ("train", "compare", "export", "evaluate")
"""Programs that pages start."""
CALLS = re.compile(r"_(target|partial|convert|recursive|args)_")
"""Keys that choose a class, or how it is called."""
PATH_NAMES = frozenset({key.rpartition(".")[2] for key in PATH_KEYS} | {"val_path", "conversations"})
"""Last part of the keys that hold a path."""
INSIDE = re.compile(r"""(?<![\w.])(?:\w+\.)*(\w+)\s*[:=]\s*("[^"]*"|'[^']*'|[^\s,{}\[\]"']+)""")
"""A key and its value inside a value: settings of a source or of an arm, given as one text."""
WORDS = ("auto", "null", "last", "best", "latest", "")
"""Values of such keys that are no path."""
TEXTS = ("prompt", "system", "stop", "question", "trainer.sample_prompt")
"""Literal keys whose values are texts for people and models, in which anything may stand."""


def check_arguments(arguments: Iterable[str], settings: Settings) -> None:
    """Check settings, given as typed in a shell.

    Raises:
        UserError: a flag, a key of Hydra's, a class, an interpolation, or a path outside the studio's folders.
    """
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"\w[\w.\-/]*", key):
            raise UserError("not a setting", file=argument[:80], hint="a form sets key=value and group=option only")
        parts = re.split(r"[./]", key)
        if "hydra" in parts:
            raise UserError("Hydra's own settings cannot be set here", key=key, value=value, hint="use the terminal")
        if CALLS.search(key):
            raise UserError("classes cannot be named here", key=key, value=value, hint="choose an option of the group")
        if key in TEXTS:
            continue
        if CALLS.search(value):
            raise UserError("classes cannot be named here", key=key, value=value, hint="choose an option of the group")
        if "${" in value:
            raise UserError("references cannot be used here", key=key, value=value, hint="write the value itself")
        for name, path in [(parts[-1], value), *((one[1], one[2]) for one in INSIDE.finditer(value))]:
            path = path.strip("\"'")
            if name in PATH_NAMES or (name == "name" and _exists(path)):
                check_path(path, settings, key=key)


def check_composed(cfg: dict[str, Any], settings: Settings) -> None:
    """Check the paths of a composed configuration, whatever way they came into it.

    Raises:
        UserError: a path outside the studio's folders.
    """
    for key, path in paths_in(cfg):
        check_path(path, settings, key=key)


def paths_in(cfg: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of a configuration that hold paths, with their values."""
    for key, value in flatten(cfg):
        items = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        name = key.rpartition(".")[2]
        yield from ((key, item) for item in items if name in PATH_NAMES or (name == "name" and _exists(item)))


def _exists(name: str) -> bool:
    """Whether a name, such as that of a data set on the hub, is a path on this machine."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return True


def check_path(path: str, settings: Settings, *, key: str) -> Path:
    """The path, if it is below a folder of the studio once links and ``..`` are resolved.

    Raises:
        UserError: it is not.
    """
    if path in WORDS:
        return Path(path)
    if "\0" not in path:
        found = Path(path).expanduser() if path.startswith("~") else Path(path)
        is_name = "/" not in path and "\\" not in path and path != ".." and not found.exists()
        if is_name or any(found.resolve().is_relative_to(folder.resolve()) for folder in folders(settings)):
            return found
    allowed = ", ".join(str(folder) for folder in folders(settings))
    hint = f"choose a path below {allowed}; --data adds folders when the studio starts"
    raise UserError("outside the folders of the studio", key=key, value=path, hint=hint)


def folders(settings: Settings) -> tuple[Path, ...]:
    """The folders below which paths may lie."""
    return (settings.outputs, *settings.data)
