"""The parts of a checkpoint with several writers: file names, and the state merged from all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinyllm.errors import UserError

STATE = "state.pt"
BY_NAME = ("optimizer", "average")
"""Entries of the state that are keyed by parameter, so that each writer holds some of the keys."""


def numbered(name: str, writer: int, writers: int) -> str:
    """The file name of one writer's part: ``name`` for a single writer, else ``model-00001-of-00004.safetensors``."""
    stem, _, extension = name.partition(".")
    return name if writers == 1 else f"{stem}-{writer + 1:05d}-of-{writers:05d}.{extension}"


def read_state(folder: Path, *, writers: int) -> dict[str, Any]:
    """The state that ``writers`` processes wrote.

    With several writers the tensors are memory-mapped: copy them, do not keep them.

    Raises:
        UserError: a file holds anything but plain containers and tensors; none of its code was executed.
    """
    parts: list[dict[str, Any]] = []
    for writer in range(writers):
        file = folder / numbered(STATE, writer, writers)
        try:
            parts.append(torch.load(file, map_location="cpu", weights_only=True, mmap=writers > 1))
        except Exception as error:  # damage can raise any exception inside torch.load
            raise UserError("unreadable state", file=file, hint=str(error).split(". ")[0]) from error
        if not isinstance(parts[-1], dict):
            raise UserError("unreadable state", file=file, hint="it does not hold a dictionary")
    return parts[0] | {key: merged([part.get(key, {}) for part in parts]) for key in BY_NAME if key in parts[0]}


def merged(parts: Sequence[Any]) -> Any:
    """Merge dictionaries recursively; for all other values the first one is used."""
    if not isinstance(parts[0], dict):
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: merged([part[name] for part in parts if name in part]) for name in names}
