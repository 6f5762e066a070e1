"""Filters and sorts runs; a mistyped key is refused with the nearest names."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.listing import DAMAGED, ListedRun

CONDITION = re.compile(r"([^<>=!~]+)(<=|>=|!=|=|<|>|~)(.*)", re.DOTALL)
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
CONSTANTS = {"null": None, "true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A filter such as ``key=value`` or ``key<value``."""

    key: str
    sign: str
    value: Any

    def matches(self, run: ListedRun) -> bool:
        """Whether a run meets the condition. A missing key counts as null."""
        return self.holds_for(run.get(self.key))

    def holds_for(self, value: Any) -> bool:
        """Whether the condition holds for this value of its key."""
        if self.sign in COMPARISONS:
            return _is_number(value) and COMPARISONS[self.sign](value, self.value)
        if self.sign == "~":
            return str(self.value).lower() in str(value).lower()
        return _equal(value, self.value) == (self.sign == "=")


def parse_condition(text: str) -> Condition:
    """Parse a condition of ``--where``.

    Raises:
        UserError: not a condition; or ``<``, ``>``, ``<=`` or ``>=`` without a number.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        hint = "key=value, key!=value, key<value, key>=value, or key~part of a string; quote it for the shell"
        raise UserError("not a condition", key="--where", value=text, hint=hint)
    key, sign, value = match[1].strip(), match[2], _parse_value(match[3].strip())
    if sign in COMPARISONS and not _is_number(value):
        raise UserError("no number to compare with", key="--where", value=text, hint=f"e.g. {key}{sign}3.5")
    return Condition(key=key, sign=sign, value=match[3].strip() if sign == "~" else value)


def check_keys(keys: Iterable[str], runs: Sequence[ListedRun], *, flag: str) -> None:
    """Refuse a key that no run has. Damaged runs are ignored; if all runs are damaged, any key passes.

    Raises:
        UserError: no run has the key; the hint suggests near names.
    """
    runs = [run for run in runs if run.get("status") != DAMAGED]
    for key in keys:
        if runs and not any(key in run.values or key in run.config for run in runs):
            known = sorted({name for run in runs for name in run.everything()})
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or [name for name in known if key in name][:3]
            hint = f"did you mean {', '.join(near)}?" if near else "--json shows all keys"
            raise UserError("no run has this key", key=flag, value=key, hint=hint)


def in_order(runs: Iterable[ListedRun], key: str, *, reverse: bool = False) -> list[ListedRun]:
    """The runs sorted by a value, numbers before strings. Runs without the value come last in both directions."""
    runs = list(runs)
    with_value = [run for run in runs if run.get(key) is not None]
    with_value.sort(key=lambda run: _sort_key(run.get(key)), reverse=reverse)
    return with_value + [run for run in runs if run.get(key) is None]


def _sort_key(value: Any) -> tuple[bool, Any]:
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: Any, wanted: Any) -> bool:
    if value is None or wanted is None or isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted) if _is_number(value) and _is_number(wanted) else str(value) == str(wanted)


def _parse_value(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            pass
    return text
