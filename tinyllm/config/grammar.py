"""Hydra's grammar, read within bounds: its parser descends once for each bracket, and is slow at long lists."""

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

DEEPEST = 32
"""Brackets inside brackets; the settings of a run have two or three."""
MOST = 4_000
"""Values in all settings of a file. The parser takes 0.4 s for a list of 2,000 and 6 s for one of 8,000."""
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
