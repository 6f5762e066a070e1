"""Free space of a disk, checked before something large is written to it."""

import os
import shutil

from tinyllm.errors import UserError
from tinyllm.utils.text import quantity


def require_space(needed: int, *, folder: str | os.PathLike[str], what: str, hint: str) -> None:
    """Refuse to write more than fits.

    Raises:
        UserError: the disk of ``folder`` has less space.
    """
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if needed > free:
        size = f"about {quantity(needed, 'B')} needed, {quantity(free, 'B')} free"
        raise UserError(f"the disk is too small for {what}", file=place, hint=f"{size}; {hint}")
