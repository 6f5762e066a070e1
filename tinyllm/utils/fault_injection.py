"""Fault injection for tests: does nothing unless the environment variable ``TINYLLM_FAULT`` is set.

Its value is ``<action>@<where>``, for example:

- ``kill@save:after_rename``: SIGKILL this process at a named point, see :data:`POINTS`;
- ``kill@save:mid_write:2``: the second time it passes that point (default: the first time; for ``nan`` every time);
- ``raise@step=5,rank=1``: at the start of the sixth step (five are finished) of rank 1;
- ``term@save:mid_write,rank=0``: at a point, on one rank.

Actions: ``kill``, ``stop``, ``term``, ``int`` and ``usr1`` send this process that signal; ``exit`` exits with code 3
without cleaning up; ``raise`` raises a RuntimeError, ``memory`` a MemoryError, ``nospace`` the OSError of a full disk;
``nan`` makes the loss NaN, for which the training loop asks :func:`makes_loss_nan`.
"""

import errno
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache

from tinyllm.errors import UserError
from tinyllm.utils.platforms import signals

VARIABLE = "TINYLLM_FAULT"
EXIT_CODE = 3
POINTS = {
    "step": "before each optimizer step; ``step`` is the number of finished steps",
    "evaluate": "before each evaluation",
    "save:before_write": "before the first byte of a checkpoint",
    "save:mid_write": "some files of the checkpoint exist, others do not",
    "save:after_sync": "every file, the manifest included, is on disk under the temporary name",
    "save:after_rename": "the checkpoint has its name; hints and older checkpoints are unchanged",
    "save:between_hints": "one hint names the new checkpoint, the other does not yet",
    "prepare:tokenizer": "the documents are split, the tokenizer is not trained",
    "prepare:shard": "a shard of ids is durable and noted in the journal",
    "save:mid_prune": "an old checkpoint has lost its name and is about to be deleted",
}
SIGNALS = {number.name[3:].lower(): number for number in signals("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGUSR1")}
ERRORS: dict[str, type[Exception]] = {"raise": RuntimeError, "memory": MemoryError, "nospace": OSError}
ACTIONS = (*SIGNALS, *ERRORS, "exit", "nan")

_passed: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The parsed value of ``TINYLLM_FAULT``."""

    text: str
    action: str
    point: str
    occasion: int
    """At which matching pass through the point the fault happens, from 1; 0: at every one."""
    conditions: dict[str, int]

    def is_at(self, point: str, facts: dict[str, int]) -> bool:
        """Whether the fault happens now. Counts the passes that meet its conditions."""
        known = {"rank": int(os.environ.get("RANK", "0"))} | facts
        if point != self.point or any(known.get(name) != value for name, value in self.conditions.items()):
            return False
        _passed[self.text] += 1
        return self.occasion in (0, _passed[self.text])


def fault(point: str, **facts: int) -> None:
    """A point where a fault can be injected; does nothing unless ``TINYLLM_FAULT`` names it.

    Args:
        point: one of :data:`POINTS`.
        facts: values for the conditions; the rank is known.

    Raises:
        RuntimeError, MemoryError, OSError: the injected fault.
        UserError: the value of the variable is not a valid fault.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    planned = parsed(text)
    if planned.action != "nan" and planned.is_at(point, facts):
        _happen(planned)


def makes_loss_nan(**facts: int) -> bool:
    """Whether to replace the loss of this step with NaN.

    Args:
        facts: ``step``, the number of finished steps, and optionally ``rank``.
    """
    text = os.environ.get(VARIABLE)
    return bool(text) and parsed(text).action == "nan" and parsed(text).is_at("step", facts)


@cache
def parsed(text: str) -> Fault:
    """Parse the value of the variable.

    Raises:
        UserError: an unknown action, point or condition. Ignoring it would let a test pass without its fault.
    """
    action, _, where = text.partition("@")
    point, *given = where.split(",")
    if "=" in point:
        point, given = "step", [point, *given]
    name, _, occasion = point.rpartition(":")
    if not occasion.isdecimal():
        name, occasion = point, "0" if action == "nan" else "1"
    conditions = dict(text.partition("=")[::2] for text in given)
    is_valid = all(value.isdecimal() for value in conditions.values()) and conditions.keys() <= {"step", "rank"}
    if action not in ACTIONS or name not in POINTS or not is_valid:
        hint = f"<action>@<point>; actions: {', '.join(ACTIONS)}; points: {', '.join(POINTS)}"
        raise UserError("invalid fault specification", key=VARIABLE, value=text, hint=hint)
    return Fault(
        text=text,
        action=action,
        point=name,
        occasion=int(occasion),
        conditions={key: int(value) for key, value in conditions.items()},
    )


def _happen(planned: Fault) -> None:
    if planned.action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[planned.action])
    elif planned.action == "exit":
        os._exit(EXIT_CODE)
    elif planned.action == "nospace":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        raise ERRORS[planned.action](f"{VARIABLE}={planned.text}")
