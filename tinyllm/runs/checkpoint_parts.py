"""What several writers each have put into a checkpoint: the names of their files, and their states put together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinyllm.errors import UserError

STATE = "state.pt"
BY_NAME = ("optimizer", "average")
"""Entries of the state to which each writer contributes, by the names of its parameters."""


def numbered(name: str, writer: int, writers: int) -> str:
    """File name of one writer's part: as it is for the only one, ``model-00001-of-00004.safetensors`` for several."""
    stem, _, ending = name.partition(".")
    return name if writers == 1 else f"{stem}-{writer + 1:05d}-of-{writers:05d}.{ending}"


def read_state(folder: Path, *, writers: int) -> dict[str, Any]:
    """The state that ``writers`` processes wrote.

    With several the tensors are read from the files when they are used: keep copies, not them.

    Raises:
        UserError: a file holds anything but plain containers and tensors; nothing of it was executed.
    """
    parts: list[dict[str, Any]] = []
    for writer in range(writers):
        file = folder / numbered(STATE, writer, writers)
        try:
            parts.append(torch.load(file, map_location="cpu", weights_only=True, mmap=writers > 1))
        except Exception as error:  # torch raises whatever the damage leads to
            raise UserError("unreadable state", file=file, hint=str(error).split(". ")[0]) from error
        if not isinstance(parts[-1], dict):
            raise UserError("unreadable state", file=file, hint="it holds no dictionary")
    return parts[0] | {key: united([part.get(key, {}) for part in parts]) for key in BY_NAME if key in parts[0]}


def united(parts: Sequence[Any]) -> Any:
    """Dictionaries with the entries of all, those in them too; of anything else the first."""
    if not isinstance(parts[0], dict):
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: united([part[name] for part in parts if name in part]) for name in names}
