"""Hydra's grammar of overrides: parsing it within bounds, taking overrides apart, and writing values in it."""

import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from tinyllm.errors import UserError

DEEPEST = 32
"""Most nested brackets. The settings of a run have two or three."""
MOST = 4_000
"""Most values in all settings of a file. The parser takes 0.4 s for a list of 2,000 values and 6 s for 8,000."""
BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"|' r"'(?:[^'\\]|\\.)*+'", re.DOTALL)


def parse_settings(settings: Iterable[str]) -> list[Override]:
    """Parse settings as Hydra does.

    Raises:
        HydraException: a setting is not in Hydra's grammar or too deeply nested.
    """
    settings = list(settings)
    for setting in settings:
        check_depth(setting)
    return OverridesParser.create().parse_overrides(settings)


def check_depth(setting: str) -> None:
    """Refuse deeply nested brackets, on which Hydra's recursive parser runs out of stack.

    Raises:
        HydraException: the brackets are nested too deeply.
    """
    depth = 0
    for bracket in re.findall(r"[\[({\])}]", _QUOTED.sub("", setting)):
        depth = depth + 1 if bracket in "[({" else depth - 1
        if depth > DEEPEST:
            raise HydraException(f"brackets nested deeper than {DEEPEST} levels")


def count_values(setting: str) -> int:
    """An upper bound for the number of values in a setting."""
    return 1 + _QUOTED.sub("", setting).count(",")


def parsed(text: str) -> Override | None:
    """A value parsed as Hydra does; None if it is not in Hydra's grammar."""
    try:
        return parse_settings([f"key={text}"])[0]
    except HydraException:
        return None


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def as_given(overrides: Any) -> list[str]:
    """The overrides in a ``hydra`` node as Hydra received them; iterating would resolve their interpolations."""
    plain: Any = OmegaConf.to_container(overrides)
    return [str(override) for override in plain]


def split(text: str) -> list[str]:
    """Split a string at its commas, except those inside quotes or brackets."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth = max(0, depth + (character in BRACKETS) - (character in BRACKETS.values()))
    return [part.strip() for part in parts] if len(parts) > 1 else parts


def words(text: str) -> list[str]:
    """Split a string into overrides, at the spaces that are not inside quotes or brackets.

    Quotes around a whole override, as a shell would need them, are removed.

    Raises:
        UserError: quotes or brackets do not match.
    """
    overrides, word, open_quote, depth = [], "", "", 0
    for character in f"{text} ":
        if character.isspace() and not open_quote and not depth:
            overrides.append(word)
            word = ""
            continue
        word += character
        if open_quote:
            open_quote = "" if character == open_quote else open_quote
        elif character in "'\"":
            open_quote = character
        else:
            depth += (character in "{[(") - (character in ")]}")
    if word.strip():
        problem = f"the {open_quote} is never closed" if open_quote else "the brackets do not match"
        raise UserError("value not understood", file=text, hint=f"{problem}; separate overrides with spaces")
    return [re.sub(r"""^(['"])(.*)\1$""", r"\2", override) for override in overrides if override]


def escaped(node: Any) -> Any:
    """A plain container with its strings escaped, so that OmegaConf sees no interpolation in them."""
    if isinstance(node, dict):
        return {name: escaped(child) for name, child in node.items()}
    if isinstance(node, list):
        return [escaped(child) for child in node]
    # OmegaConf reads \${ as a literal ${, and two backslashes as one only right before a ${.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def quote(text: str) -> str:
    """``text`` as a quoted string that Hydra reads back unchanged, with any ``${…}`` unresolved."""
    return QuotedString(escaped(text), Quote.double).with_quotes()


def to_grammar(value: Any) -> str:
    """A plain value written in Hydra's grammar, which reads it back unchanged.

    Raises:
        ValueError: a mapping has a key that is not an identifier; the grammar cannot quote keys.
    """
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, dict):
        if not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w-]*", name) for name in value):
            raise ValueError(f"not all keys are identifiers: {', '.join(map(str, value))}")
        return f"{{{','.join(f'{name}:{to_grammar(child)}' for name, child in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(to_grammar, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def text_of(value: Any) -> str:
    """The text of a literal value in a parsed override, as the configuration will hold it."""
    return str(OmegaConf.create({"text": value}).text)
