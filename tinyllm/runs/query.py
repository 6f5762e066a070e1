"""Choosing among runs: conditions, orders, and what is left of a key that was mistyped."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.listing import DAMAGED, Listed

CONDITION = re.compile(r"([^<>=!~]+)(<=|>=|!=|=|<|>|~)(.*)", re.DOTALL)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
WORDS = {"null": None, "true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """``key=value`` and the like."""

    key: str
    sign: str
    value: Any

    def holds(self, run: Listed) -> bool:
        """Whether a run meets it; a run without the key has null there."""
        found = run.get(self.key)
        if self.sign in ORDERS:
            return _number(found) and ORDERS[self.sign](found, self.value)
        if self.sign == "~":
            return str(self.value).lower() in str(found).lower()
        return _same(found, self.value) == (self.sign == "=")


def condition(text: str) -> Condition:
    """A condition as one types it.

    Raises:
        UserError: it is none, or compares with what is no number.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        hint = "key=value, key!=value, key<value, key>=value, or key~part of a text; quote it for the shell"
        raise UserError("not a condition", key="--where", value=text, hint=hint)
    key, sign, value = match[1].strip(), match[2], _value(match[3].strip())
    if sign in ORDERS and not _number(value):
        raise UserError("no number to compare with", key="--where", value=text, hint=f"e.g. {key}{sign}3.5")
    return Condition(key=key, sign=sign, value=match[3].strip() if sign == "~" else value)


def check_keys(keys: Iterable[str], runs: Sequence[Listed], *, flag: str) -> None:
    """Refuse a name that no run has a value for; of one that is damaged nobody knows what it had.

    Raises:
        UserError: there is one; it says what it might have been.
    """
    runs = [run for run in runs if run.values["status"] != DAMAGED]
    for key in keys:
        if runs and not any(key in run.values or key in run.config for run in runs):
            known = sorted({name for run in runs for name in run.everything()})
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or [one for one in known if key in one][:3]
            hint = f"did you mean {', '.join(near)}?" if near else "--json shows all there is"
            raise UserError("no run has this", key=flag, value=key, hint=hint)


def ordered(runs: Iterable[Listed], key: str, *, reverse: bool = False) -> list[Listed]:
    """The runs by a value, numbers before texts; those that have none come last in both directions."""
    runs = list(runs)
    with_value = [run for run in runs if run.get(key) is not None]
    with_value.sort(key=lambda run: _rank(run.get(key)), reverse=reverse)
    return with_value + [run for run in runs if run.get(key) is None]


def _rank(value: Any) -> tuple[bool, Any]:
    number = isinstance(value, int | float)
    return not number, value if number else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: Any, asked: Any) -> bool:
    if found is None or asked is None or isinstance(found, bool) or isinstance(asked, bool):
        return found is asked
    return bool(found == asked) if _number(found) and _number(asked) else str(found) == str(asked)


def _value(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
