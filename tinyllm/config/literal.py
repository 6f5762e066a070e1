"""Keys whose value is free text: quoted for Hydra, so that commas, quotes, brackets, spaces survive."""

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from omegaconf import OmegaConf

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


def quote(text: str) -> str:
    """``text`` as one string of Hydra's grammar that comes out unchanged, ``${…}`` unresolved."""
    # OmegaConf reads \${ as a literal ${ and, only just before a ${, two backslashes as one.
    kept = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(kept, Quote.double).with_quotes()


def unquoted(overrides: Iterable[str]) -> list[str]:
    """Overrides in Hydra's grammar as a command line of ours takes them: what :func:`quote_literals` did, undone."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{one.key_or_group}={OmegaConf.create({'text': one.value()}).text}"
        if one.key_or_group in LITERAL_KEYS and one.value_type is ValueType.ELEMENT and isinstance(one.value(), str)
        else str(one.input_line)
        for one in parsed
    ]


def quote_literals(argv: Iterable[str]) -> list[str]:
    """The command line with the values of literal keys quoted; ``prompt=`` is the empty text."""
    quoted = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        quoted.append(f"{key}={quote(value)}" if equals and key in LITERAL_KEYS else argument)
    return quoted
