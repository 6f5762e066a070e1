"""How many processes train together. A strategy is asked for its rank and size, never for its kind."""

import os

from tinyllm.errors import UserError


class SingleProcess:
    """One process: rank 0 of 1."""

    rank = 0
    world_size = 1


def auto() -> SingleProcess:
    """One process, unless torchrun started several.

    Raises:
        UserError: several processes were started; data-parallel training is not part of this version.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        raise UserError(
            "several processes were started",
            key="WORLD_SIZE",
            value=world_size,
            hint="this version trains in one process: start it without torchrun",
        )
    return SingleProcess()
