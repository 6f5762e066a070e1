"""Keys whose value is free text: quoted for Hydra, so that commas, quotes, brackets, spaces survive."""

import os
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from omegaconf import OmegaConf

from tinyllm.config.grammar import parse_settings
from tinyllm.config.typed import in_grammar
from tinyllm.errors import UserError

LITERAL_KEYS = frozenset(
    {
        "prompt",
        "prompts",
        "stop",
        "run",
        "run.dir",
        "resume",
        "init_from",
        "out",
        "path",
        "vs",
        "study",
        "question",
        "reference",
        "tune",
        "dataset.path",
        "dataset.val_path",
        "trainer.sample_prompt",
        "model.layers.json",
    }
)

PATH_KEYS = frozenset(
    {
        *("run", "run.dir", "resume", "init_from", "out", "path", "study", "prompts", "checkpoint", "scaling.out"),
        *("dataset.path", "dataset.val_path", "tokenizer.path", "model.layers.path", "logger.dir", "hydra.sweep.dir"),
    }
)
"""Keys whose value is the place of a file or directory: ``~`` at its beginning is the home directory. A shell leaves
it alone behind an equals sign."""


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


def _in_home(key: str, value: str) -> str:
    if (path := os.path.expanduser(value)) == value:
        hint = "give the path in full, or ./~… for a name that begins so"
        raise UserError("nobody knows that home directory", key=key, value=value, hint=hint)
    return path


def unquoted(overrides: Iterable[str]) -> list[str]:
    """Overrides in Hydra's grammar as a command line of ours takes them: what :func:`quote_literals` did, undone."""
    parsed = parse_settings(overrides)
    return [
        f"{one.get_key_element()}={text_of(one.value())}"
        if one.key_or_group in LITERAL_KEYS and one.value_type is ValueType.ELEMENT and isinstance(one.value(), str)
        else str(one.input_line)
        for one in parsed
    ]


def quote_literals(argv: Iterable[str], *, several: bool = False, multirun: bool = False) -> list[str]:
    """A command line in Hydra's grammar: texts quoted where it needs that, whole numbers as it writes them.

    ``prompt=`` is the empty text.

    Args:
        several: commas may separate values, but not in literal keys.
        multirun: commas separate values everywhere.
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
