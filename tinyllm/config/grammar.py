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
"""Brackets inside brackets; the settings of a run have two or three."""
MOST = 4_000
"""Values in all settings of a file. The parser takes 0.4 s for a list of 2,000 and 6 s for one of 8,000."""
BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"|' r"'(?:[^'\\]|\\.)*+'", re.DOTALL)


def parse_settings(settings: Iterable[str]) -> list[Override]:
    """Settings as Hydra reads them.

    Raises:
        HydraException: one is not of its grammar, or nested too deep.
    """
    settings = list(settings)
    for one in settings:
        check_depth(one)
    return OverridesParser.create().parse_overrides(settings)


def check_depth(setting: str) -> None:
    """Refuse a setting whose brackets are nested deeper than anybody's; unchecked, the parser runs out of stack.

    Raises:
        HydraException: it is such a one.
    """
    depth = 0
    for bracket in re.findall(r"[\[({\])}]", _QUOTED.sub("", setting)):
        depth = depth + 1 if bracket in "[({" else depth - 1
        if depth > DEEPEST:
            raise HydraException(f"brackets nested deeper than {DEEPEST} levels")


def count_values(setting: str) -> int:
    """How many values a setting has at most."""
    return 1 + _QUOTED.sub("", setting).count(",")


def parsed(text: str) -> Override | None:
    """What Hydra makes of a value; None: its grammar has nothing like it."""
    try:
        return parse_settings([f"key={text}"])[0]
    except HydraException:
        return None


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def as_given(overrides: Any) -> list[str]:
    """The overrides in Hydra's node, as Hydra was given them: going through the list would resolve what is in them."""
    given: Any = OmegaConf.to_container(overrides)
    return [str(one) for one in given]


def split(text: str) -> list[str]:
    """The parts of a text at its commas; a comma in quotes or brackets is none of them."""
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
    """The overrides in a text, in Hydra's grammar: split at the spaces that are not inside quotes or brackets.

    Quotes around a whole override, as a shell would want them, are left out.

    Raises:
        UserError: a quotation mark or a bracket without its other half.
    """
    found, word, open_quote, depth = [], "", "", 0
    for character in f"{text} ":
        if character.isspace() and not open_quote and not depth:
            found.append(word)
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
        half = f"{open_quote} without its other half" if open_quote else "brackets that do not match"
        raise UserError("value not understood", file=text, hint=f"{half}; overrides stand between spaces")
    return [re.sub(r"""^(['"])(.*)\1$""", r"\2", one) for one in found if one]


def escaped(node: Any) -> Any:
    """A plain container whose texts OmegaConf takes as they are: nothing in it names another key or the environment."""
    if isinstance(node, dict):
        return {name: escaped(child) for name, child in node.items()}
    if isinstance(node, list):
        return [escaped(child) for child in node]
    # OmegaConf reads \${ as a literal ${ and, only just before a ${, two backslashes as one.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def quote(text: str) -> str:
    """``text`` as one string of Hydra's grammar that comes out unchanged, ``${…}`` unresolved."""
    return QuotedString(escaped(text), Quote.double).with_quotes()


def written(value: Any) -> str:
    """A value of a plain container in Hydra's grammar, which reads it as that value and nothing else.

    Raises:
        ValueError: a mapping has a key that is no name; the grammar has no quotes for keys.
    """
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, dict):
        if not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w-]*", name) for name in value):
            raise ValueError(f"not all keys are names: {', '.join(map(str, value))}")
        return f"{{{','.join(f'{name}:{written(child)}' for name, child in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def text_of(value: Any) -> str:
    """The text that a literal value of a parsed override stands for, as it is read from the configuration later."""
    return str(OmegaConf.create({"text": value}).text)
