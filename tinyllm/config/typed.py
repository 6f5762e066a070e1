"""Values of a command line by the type of their key, before Hydra's grammar reads them.

To Hydra ``run.name=2024_01`` is the number 202401, ``logger.notes=it's`` does not parse and ``trainer.max_tokens=1e6``
is a fraction. Here a key whose schema says text has the text that was typed, and a key that counts takes what a person
writes for a whole number.
"""

import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from tinyllm.config import schema
from tinyllm.config.allowed import walk_nodes
from tinyllm.config.grammar import parse_settings
from tinyllm.config.paths import conf_dir
from tinyllm.config.suggestions import package_of
from tinyllm.config.targets import annotations_of, resolve_target
from tinyllm.errors import UserError
from tinyllm.utils.text import whole_number
from tinyllm.utils.yaml_files import read_yaml

Kind = Literal["text", "text or null", "texts", "whole", "wholes", ""]
"""What a key holds, as far as it matters here; "": something else."""
BRACKETS = {"[": "]", "(": ")", "{": "}"}


def in_grammar(key: str, value: str, *, several: bool) -> str:
    """A typed value in Hydra's grammar, such that the key gets what was typed.

    Args:
        several: commas separate values.
    """
    if key.startswith("hydra.") and key != "hydra.sweep.dir":
        return value
    several = several and key != "hydra.sweep.dir"
    kind = _kind_in_schemas().get(key) or _kind_in_groups(key, value, several=several)
    if not kind:
        return value
    if kind in ("texts", "wholes"):
        inner = value.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            return value
        one: Kind = "text" if kind == "texts" else "whole"
        return f"[{','.join(_element(part, one) for part in split(inner[1:-1]))}]"
    return ",".join(_element(one, kind, several=True) for one in split(value)) if several else _element(value, kind)


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


def _element(text: str, kind: Kind, *, several: bool = False) -> str:
    if kind == "whole":
        number = whole_number(text)
        return text if number is None else str(number)
    override = parsed(text)
    if override is not None:
        value = override.value()
        if isinstance(override._value, QuotedString) or value == text or (several and override.is_sweep_override()):
            return text
        if value is None and kind == "text or null":
            return text
    return QuotedString(text, Quote.double).with_quotes()  # ${…} stays a reference to another key


def parsed(text: str) -> Override | None:
    """What Hydra makes of a value; None: its grammar has nothing like it."""
    try:
        return parse_settings([f"key={text}"])[0]
    except HydraException:
        return None


def kind_of(annotation: Any, metadata: Any = None) -> Kind:
    """What a key of this type holds."""
    metadata = metadata or {}
    if annotation is Any and metadata.get("whole"):
        return "whole"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = set(typing.get_args(annotation)) - {type(None)}
        if len(parts) > 1:
            return ""
        inner = kind_of(parts.pop(), metadata)
        return "text or null" if inner == "text" else inner
    if annotation is str:
        return "" if metadata.get("choices") else "text"
    if annotation is int:
        return "whole"
    items = typing.get_args(annotation)[:1]
    if isinstance(typing.get_origin(annotation), type) and issubclass(typing.get_origin(annotation), Sequence):
        return "texts" if items == (str,) else "wholes" if items == (int,) else ""
    return ""


@cache
def _kind_in_schemas() -> dict[str, Kind]:
    """The kind of every key of a root file; a name means the same in all programs."""
    found: dict[str, Kind] = {"hydra.sweep.dir": "text"}
    for root in schema.SCHEMAS.values():
        found |= {key: kind_of(one.type, one.metadata) for key, one in schema.fields_of(root)}
    return {key: kind for key, kind in found.items() if kind}


def _kind_in_groups(key: str, value: str, *, several: bool) -> Kind:
    """The kind of a key that an option of a group has. It takes an import of the option's class, so it is asked only
    where Hydra would not read a text as typed; numbers are put right after the composition, see ``conform``.
    """
    if all(_as_typed(one, several=several) for one in (split(value) if several else [value])):
        return ""
    kinds = {kind_of(one) for one in _annotations(key)}
    return kinds.pop() if len(kinds) == 1 else ""


def _as_typed(text: str, *, several: bool) -> bool:
    """Whether Hydra reads a value such that nothing of what was typed is lost, or it can be put right afterwards."""
    override = parsed(text)
    if override is None or (override.is_sweep_override() and not several):
        return False
    value = override.value()
    return value == text or (not several and isinstance(value, int | float | None))


def _annotations(key: str) -> Iterator[Any]:
    """The types that the shipped options which have a key give it."""
    for file in sorted(conf_dir().glob("*/*.yaml")):
        package = package_of(file)
        if not package or not key.startswith(f"{package}."):
            continue
        for path, node in walk_nodes(read_yaml(file), package):
            parent, _, name = key.rpartition(".")
            if path != parent:
                continue
            try:
                annotations = annotations_of(resolve_target(node, path=path))
            except UserError:  # a class of somebody else's, or a package that is not installed
                continue
            if name in annotations:
                yield annotations[name]


def conformed(value: Any, annotation: Any, *, typed: str | None = None) -> Any:
    """``value`` as its key's type has it: a text as it was typed, a number that came as text or as a whole float.

    Args:
        typed: what the command line gives the key, in Hydra's grammar.
    """
    kind = kind_of(annotation)
    if kind in ("text", "text or null"):
        wrong = typed is not None and isinstance(value, int | float | bool)
        return typed if wrong else value
    if isinstance(value, list | tuple):
        items = typing.get_args(annotation)[:1]
        return [conformed(one, items[0]) for one in value] if items else value
    if isinstance(value, dict) or value is None:
        return value
    wanted = set(typing.get_args(annotation)) or {annotation}
    if str in wanted or not wanted & {int, float, bool}:
        return value
    if isinstance(value, float) and value.is_integer() and int in wanted and (float not in wanted or value > 1):
        return int(value)
    return _read(value, wanted) if isinstance(value, str) else value


def _read(text: str, wanted: set[Any]) -> Any:
    """What a text says, as the environment has nothing else; the text itself where it says nothing of the kind."""
    number = whole_number(text) if wanted & {int, float} else None
    if number is not None:
        return number
    if float in wanted:
        try:
            return float(text)
        except ValueError:
            pass
    words = {"true": True, "false": False} if bool in wanted else {}
    return words.get(text.strip().lower(), text)
