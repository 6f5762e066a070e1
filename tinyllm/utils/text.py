"""Text for people: numbers, durations, paths, commands, and text made safe for a terminal."""

import os
import re
import shlex
import shutil
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NOT_TEXT = (*range(0xD800, 0xE000), *range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF)
"""Surrogates, which UTF-8 cannot encode, and code points that XML forbids."""
_CONTROL |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, 0xFEFF, *_DIRECTION, *_NOT_TEXT)}


LARGEST_INTEGER = 2**63 - 1
"""The largest integer of torch, which no counter reaches."""
_WHOLE = re.compile(r"([+-]?)([0-9]+(?:_[0-9]+)*)(?:\.([0-9]*))?(?:[eE]\+?([0-9]{1,2}))?")
_POWER = re.compile(r"([0-9]{1,19})\s*\*\*\s*([0-9]{1,2})")


def whole_number(text: str) -> int | None:
    """Parse a whole number as people write it: ``1000``, ``1_000``, ``1e3``, ``2.5e6`` or ``2**19``.

    Nothing is evaluated. None for any other string, and for numbers beyond 64 bits.
    """
    text = text.strip()
    if power := _POWER.fullmatch(text):
        base, exponent = int(power[1]), int(power[2])
        if base > 1 and exponent > 63:
            return None
        number = int(base**exponent)
    elif match := _WHOLE.fullmatch(text):
        sign, digits, decimals, shift = match[1], match[2], (match[3] or "").rstrip("0"), int(match[4] or 0)
        if len(decimals) > shift or len(digits) + shift > 40:
            return None
        number = int(f"{sign}{digits}{decimals}") * int(10 ** (shift - len(decimals)))
    else:
        return None
    return number if abs(number) <= LARGEST_INTEGER else None


def short(number: float) -> str:
    """A number with three digits and a prefix: 1234567 is ``1.23M``."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 999.5 or unit == "P":
            break
        number /= 1000
    if not unit and number == int(number):
        return str(int(number))
    return f"{number:.{max(0, 3 - len(str(int(abs(number)))))}f}{unit}"


def quantity(number: float, unit: str) -> str:
    """A number with three digits, a decimal prefix and a unit: 210000000 B is ``210 MB``."""
    text = short(number)
    digits = text.rstrip("kMGTP")
    return f"{digits} {text[len(digits) :]}{unit}"


def duration(seconds: float) -> str:
    """A duration as ``m:ss``, ``h:mm:ss`` or ``2d 3:04:05``."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours or days else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock


def escape_control(text: str) -> str:
    r"""The text with control and direction characters escaped (``\x1b``); line ends and tabs stay.

    Model output, the name of a run or an untrusted file may contain escape sequences that a terminal would execute.
    The result is also valid UTF-8 and XML.
    """
    return text.translate(_CONTROL)


def say(text: str) -> None:
    """Print a line and flush it, so that it appears at once even in a pipe."""
    print(text, flush=True)


def silent(text: str) -> None:
    """Prints nothing; replaces :func:`say` where standard output holds JSON."""


def print_note(text: str) -> None:
    """Print a note to standard error, keeping standard output for the result."""
    print(escape_control(text), file=sys.stderr, flush=True)


def escape_control_in(value: Any) -> Any:
    """A copy of nested containers and dataclasses with :func:`plain` applied to every string, keys included."""
    if isinstance(value, str):
        return escape_control(value)
    if isinstance(value, dict):
        return {escape_control_in(key): escape_control_in(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(escape_control_in(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{entry.name: escape_control_in(getattr(value, entry.name)) for entry in fields(value)})
    return value


def shown_path(path: Path) -> str:
    """The path relative to the current directory if it is below it, else absolute."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def python_command() -> str:
    """How to start this interpreter from a shell: ``python`` if that is on the PATH, else its path."""
    for name in ("python", "python3"):
        # Compare folders, not files: the python of every virtual environment links to the same file.
        found = shutil.which(name)
        if found and os.path.samefile(os.path.dirname(found), os.path.dirname(sys.executable)):
            return name
    return shown_path(Path(sys.executable))


def command(program: str, *arguments: str) -> str:
    """A command to paste into a shell, quoted where needed: ``python -m tinyllm.generate run='my run'``."""
    words = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        words.append(f"{key}={shlex.quote(value)}" if equals else shlex.quote(argument))
    return " ".join([shlex.quote(python_command()), "-m", f"tinyllm.{program}", *words])
