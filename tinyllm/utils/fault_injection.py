"""Faults on purpose, for the tests of faults and for no one else: nothing happens unless ``TINYLLM_FAULT`` is set.

The variable says what to do and where, ``<action>@<where>``:

- ``kill@save:after_rename``: SIGKILL to this process at a named point, see :data:`POINTS`;
- ``kill@save:mid_write:2``: the second time that this process passes it; without a number the first, ``nan`` each;
- ``raise@step=5,rank=1``: at the start of the sixth step (five are finished) of rank 1;
- ``term@save:mid_write,rank=0``: both a point and a rank.

Actions: ``kill``, ``stop``, ``term``, ``int`` and ``usr1`` send this process that signal; ``exit`` leaves with code 3
without cleaning up; ``raise`` raises a RuntimeError, ``memory`` a MemoryError, ``nospace`` the OSError of a full disk;
``nan`` spoils the loss of steps, which the training loop asks for with :func:`spoilt`.
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
    "step": "before each optimizer step; its facts are the number of finished steps and the rank",
    "evaluate": "before each evaluation",
    "save:before_write": "before the first byte of a checkpoint",
    "save:mid_write": "some files of the checkpoint are there, others are not",
    "save:after_sync": "every file is on the disk under the temporary name, the manifest too",
    "save:after_rename": "the checkpoint has its name; the hints and the old ones are as before",
    "save:between_hints": "one hint names the new checkpoint, the other does not yet",
    "save:mid_prune": "some of the old checkpoints are gone, or the first is about to go",
}
SIGNALS = {one.name[3:].lower(): one for one in signals("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGUSR1")}
ERRORS: dict[str, type[Exception]] = {"raise": RuntimeError, "memory": MemoryError, "nospace": OSError}
ACTIONS = (*SIGNALS, *ERRORS, "exit", "nan")

_passed: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What ``TINYLLM_FAULT`` asks for."""

    text: str
    action: str
    point: str
    occasion: int
    """Which time that the point is passed under the conditions; 0: each."""
    conditions: dict[str, int]

    def is_at(self, point: str, facts: dict[str, int]) -> bool:
        """Whether it is due here; counts the times that it was."""
        known = {"rank": int(os.environ.get("RANK", "0"))} | facts
        if point != self.point or any(known.get(name) != value for name, value in self.conditions.items()):
            return False
        _passed[self.text] += 1
        return self.occasion in (0, _passed[self.text])


def fault(point: str, **facts: int) -> None:
    """A place where things may go wrong; does nothing unless ``TINYLLM_FAULT`` names it.

    Args:
        point: one of :data:`POINTS`.
        facts: what the conditions are compared with; the rank is known without being given.

    Raises:
        RuntimeError, MemoryError, OSError: as asked for.
        UserError: the variable cannot be read.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    planned = parsed(text)
    if planned.action != "nan" and planned.is_at(point, facts):
        _happen(planned)


def spoilt(**facts: int) -> bool:
    """Whether the loss of this step is to be replaced by NaN.

    Args:
        facts: ``step``, the number of finished steps, and perhaps ``rank``.
    """
    text = os.environ.get(VARIABLE)
    return bool(text) and parsed(text).action == "nan" and parsed(text).is_at("step", facts)


@cache
def parsed(text: str) -> Fault:
    """The meaning of the variable's text.

    Raises:
        UserError: an unknown action, point or condition; a test that injects nothing would pass for nothing.
    """
    action, _, where = text.partition("@")
    point, *given = where.split(",")
    if "=" in point:
        point, given = "step", [point, *given]
    name, _, occasion = point.rpartition(":")
    if not occasion.isdecimal():
        name, occasion = point, "0" if action == "nan" else "1"
    conditions = dict(one.partition("=")[::2] for one in given)
    whole = all(value.isdecimal() for value in conditions.values()) and conditions.keys() <= {"step", "rank"}
    if action not in ACTIONS or name not in POINTS or not whole:
        hint = f"<action>@<point>, of {', '.join(ACTIONS)} and {', '.join(POINTS)}"
        raise UserError("not a fault", key=VARIABLE, value=text, hint=hint)
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
