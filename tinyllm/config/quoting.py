"""Quote command-line values for Hydra's grammar, by the type of each key.

Hydra reads ``run.name=2024_01`` as the number 202401, cannot parse ``logger.notes=it's`` and reads
``trainer.max_tokens=1e6`` as a float. Here a key that holds a string gets it as typed, and a key that holds a whole
number accepts the usual ways of writing one.
"""

import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal

from hydra.core.override_parser.types import Quote, QuotedString, ValueType

from tinyllm.config import schema
from tinyllm.config.grammar import parse_settings, parsed, quote, split, text_of
from tinyllm.config.option_files import conf_dir, package_of
from tinyllm.config.targets import resolve_target, walk_nodes
from tinyllm.errors import UserError
from tinyllm.utils.signatures import annotations_of
from tinyllm.utils.text import whole_number
from tinyllm.utils.yaml_files import read_yaml

LITERAL_KEYS = frozenset(
    {
        "prompt",
        "prompts",
        "system",
        "conversations",
        "stop",
        "run",
        "run.dir",
        "resume",
        "init_from",
        "reward.model.run",
        "versus",
        "out",
        "path",
        "vs",
        "study",
        "question",
        "reference",
        "tune",
        "validation",
        "dataset.path",
        "dataset.val_path",
        "trainer.sample_prompt",
        "model.layers.json",
    }
)

PATH_KEYS = frozenset(
    {
        *(
            "run",
            "run.dir",
            "resume",
            "init_from",
            "versus",
            "reward.model.run",
            "out",
            "path",
            "study",
            "prompts",
            "checkpoint",
            "scaling.out",
        ),
        *("dataset.path", "dataset.val_path", "tokenizer.path", "model.layers.path", "logger.dir", "hydra.sweep.dir"),
    }
)
"""Keys that hold a path. A leading ``~`` is the home directory, which shells do not expand after an equals sign."""
ValueKind = Literal["text", "text or null", "texts", "whole", "wholes", ""]
"""The kind of value that a key holds, as far as quoting depends on it: a string, a whole number or a list of either;
"" for anything else."""


def _in_home(key: str, value: str) -> str:
    if (path := os.path.expanduser(value)) == value:
        hint = "give the full path, or ./~… for a name that starts with ~"
        raise UserError("no such home directory", key=key, value=value, hint=hint)
    return path


def unquoted(overrides: Iterable[str]) -> list[str]:
    """Overrides in Hydra's grammar as a user would type them: undoes :func:`quote_literals`."""
    parsed = parse_settings(overrides)
    return [
        f"{override.get_key_element()}={text_of(override.value())}"
        if override.key_or_group in LITERAL_KEYS
        and override.value_type is ValueType.ELEMENT
        and isinstance(override.value(), str)
        else str(override.input_line)
        for override in parsed
    ]


def quote_literals(argv: Iterable[str], *, several: bool = False, multirun: bool = False) -> list[str]:
    """Write a command line in Hydra's grammar: quote strings, convert whole numbers, expand ``~``.

    ``prompt=`` sets the empty string.

    Args:
        argv: settings and flags as typed.
        several: commas separate values, except in literal keys.
        multirun: commas separate values in every key.
    """
    quoted = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key in PATH_KEYS and value.startswith("~"):
            value = _in_home(key, value)
        if not equals or key.startswith("-"):
            quoted.append(argument)
        elif key in LITERAL_KEYS and not multirun:
            quoted.append(f"{key}={quote(value)}")
        else:
            quoted.append(f"{key}={in_grammar(key.lstrip('+'), value, several=several or multirun)}")
    return quoted


def in_grammar(key: str, value: str, *, several: bool) -> str:
    """Write the value that was typed for a key in Hydra's grammar.

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
        item: ValueKind = "text" if kind == "texts" else "whole"
        return f"[{','.join(_element(part, item) for part in split(inner[1:-1]))}]"
    if several:
        return ",".join(_element(part, kind, several=True) for part in split(value))
    return _element(value, kind)


def _element(text: str, kind: ValueKind, *, several: bool = False) -> str:
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


def kind_of(annotation: Any, metadata: Any = None) -> ValueKind:
    """What a key of this type holds.

    Args:
        annotation: the type of a dataclass field or constructor parameter.
        metadata: that of the dataclass field; see :func:`tinyllm.config.schema_key.key`.
    """
    metadata = metadata or {}
    if annotation is Any and metadata.get("whole"):
        return "whole"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = set(typing.get_args(annotation)) - {type(None)}
        if len(parts) > 1:
            kinds = {kind_of(part, metadata) for part in parts}
            return "texts" if kinds == {"text", "texts"} else ""  # a list, or a word that stands for one
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
def _kind_in_schemas() -> dict[str, ValueKind]:
    """The kind of every key of the root files. A key has the same kind in every program."""
    kinds: dict[str, ValueKind] = {"hydra.sweep.dir": "text"}
    for root in schema.SCHEMAS.values():
        kinds |= {key: kind_of(field.type, field.metadata) for key, field in schema.fields_of(root)}
    return {key: kind for key, kind in kinds.items() if kind}


def _kind_in_groups(key: str, value: str, *, several: bool) -> ValueKind:
    """The kind of a key that belongs to an option of a group; "" if Hydra reads the value as exactly the text
    entered, or as a number that can be converted later.

    Finding the kind means importing the option's class, which is slow, so it is avoided where the answer does not
    matter. Numbers are converted after the composition, by :func:`conformed`.
    """
    if all(_as_typed(text, several=several) for text in (split(value) if several else [value])):
        return ""
    kinds = {kind_of(annotation) for annotation in _annotations(key)}
    return kinds.pop() if len(kinds) == 1 else ""


def _as_typed(text: str, *, several: bool) -> bool:
    """Whether Hydra reads a value as exactly the text entered, or as a number that can be converted later."""
    override = parsed(text)
    if override is None or (override.is_sweep_override() and not several):
        return False
    value = override.value()
    return value == text or (not several and isinstance(value, int | float | None))


def _annotations(key: str) -> Iterator[Any]:
    """The types that the shipped options give to a key."""
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
            except UserError:  # a package that is not installed
                continue
            if name in annotations:
                yield annotations[name]


def conformed(value: Any, annotation: Any, *, typed: str | None = None) -> Any:
    """``value`` converted to the type of its key, as far as it can be without loss.

    A string that Hydra read as a number becomes the string again; strings that spell a number become numbers, and whole
    floats become integers.

    Args:
        value: a plain value.
        annotation: the type of the key.
        typed: the value on the command line, in Hydra's grammar.
    """
    kind = kind_of(annotation)
    if kind in ("text", "text or null"):
        wrong = typed is not None and isinstance(value, int | float | bool)
        return typed if wrong else value
    if isinstance(value, list | tuple):
        lists = [part for part in typing.get_args(annotation) if kind_of(part) in ("texts", "wholes")]
        items = typing.get_args(lists[0] if lists else annotation)[:1]
        return [conformed(item, items[0]) for item in value] if items else value
    if isinstance(value, dict) or value is None:
        return value
    wanted = set(typing.get_args(annotation)) or {annotation}
    if str in wanted or not wanted & {int, float, bool}:
        return value
    if isinstance(value, float) and value.is_integer() and int in wanted and (float not in wanted or value > 1):
        return int(value)
    return _read(value, wanted) if isinstance(value, str) else value


def _read(text: str, wanted: set[Any]) -> Any:
    """The number or boolean that a string spells (environment variables hold only strings), or the string itself."""
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
