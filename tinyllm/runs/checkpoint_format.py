"""Writes the files of a checkpoint: first the part of each writer, then the index and manifest that complete it."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.runs.checkpoint import FORMAT, MANIFEST, prune, set_hint
from tinyllm.runs.checkpoint_parts import STATE, numbered
from tinyllm.runs.tensor_files import INDEX, MODEL
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.files import (
    create,
    read_json,
    remove,
    set_mode,
    sha256,
    sync,
    temporary,
    write_json,
)
from tinyllm.utils.write_errors import readable_write_errors

KEPT = "the checkpoints before it are intact"


@dataclass(frozen=True, kw_only=True)
class Part:
    """The files that one writer has written.

    Attributes:
        files: size in bytes and sha256 by file name.
        tensors: names of the weights.
        total_size: bytes of the weights.
    """

    files: dict[str, dict[str, Any]]
    tensors: list[str]
    total_size: int


def write_part(
    folder: Path,
    *,
    writer: int,
    writers: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    texts: Mapping[str, str],
) -> Part:
    """Write one writer's weights, state and text files, and flush them to disk. After an error all are removed."""
    model, rest = folder / numbered(MODEL, writer, writers), folder / numbered(STATE, writer, writers)
    files = [model, rest, *(folder / name for name in texts)]
    try:
        fault("save:before_write")
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, model, {"format": "pt"})
        fault("save:mid_write")
        with create(rest) as stream:
            torch.save(dict(state), stream)
        set_mode(model, rest.stat().st_mode)  # safetensors ignores the umask: only the owner could read the file
        for name, text in texts.items():
            with create(folder / name) as stream:
                stream.write(text.encode())
        # The manifest will list these files as complete, so they must be on disk before it.
        for file in files:
            sync(file)
        part = Part(
            files={file.name: entry(file) for file in files},
            tensors=list(weights),
            total_size=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        )
    except BaseException:
        for file in files:
            remove(file)
        raise
    return part


def entry(file: Path) -> dict[str, Any]:
    """The manifest's entry for a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def write_note(folder: Path, writer: int, outcome: Part | Exception) -> None:
    """Write a note that tells rank 0 which files a writer has written, or why it failed."""
    if isinstance(outcome, Part):
        write_json(_note(folder, writer), asdict(outcome))
        return
    known = isinstance(outcome, UserError)
    error = {name: str(getattr(outcome, name)) for name in ("what", "file", "hint")} if known else repr(outcome)
    with contextlib.suppress(OSError, UserError):  # a full disk may be the reason
        write_json(_note(folder, writer), {"error": error})


def withdraw(folder: Path, writer: int, writers: int) -> None:
    """Remove a writer's unpublished files from ``folder``, and the folder itself once it is empty."""
    for file in (folder / numbered(MODEL, writer, writers), folder / numbered(STATE, writer, writers)):
        remove(file)
    remove(_note(folder, writer))
    with contextlib.suppress(OSError):
        folder.rmdir()


def read_note(folder: Path, writer: int) -> Part:
    """The part of a different writer, from its note.

    Raises:
        UserError: that writer failed, with its reason; or it left no note.
    """
    what = f"rank {writer} did not write its part of the checkpoint"
    try:
        content = read_json(_note(folder, writer))
    except UserError as error:
        hint = "see that rank's error, or check that all hosts share the run directory"
        raise UserError(what, file=folder, hint=hint) from error
    reason = content.get("error")
    if isinstance(reason, dict):
        raise UserError(f"rank {writer}: {reason['what']}", file=reason["file"], hint=reason["hint"])
    if reason is not None:
        raise UserError(what, file=folder, hint=reason)
    return Part(**content)


def _note(folder: Path, writer: int) -> Path:
    return folder / f".part-{writer + 1:05d}.json"


def publish(
    folder: Path,
    target: Path,
    *,
    step: int,
    parts: Sequence[Part],
    facts: Mapping[str, Any],
    best: bool,
    keep: int,
) -> None:
    """Turn the parts in ``folder`` into the checkpoint ``target``, then remove old checkpoints.

    The order makes a crash at any point harmless: index, manifest, one rename, hints, pruning.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    directory, writers = target.parent, len(parts)
    with readable_write_errors(target, kept=KEPT):
        files = {name: listed for part in parts for name, listed in part.files.items()}
        if writers > 1:
            _write_index(folder / INDEX, parts)
            files[INDEX] = entry(folder / INDEX)
            for writer in range(writers):
                remove(_note(folder, writer))
        listed = dict(sorted(files.items()))
        write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "writers": writers, **facts, "files": listed})
        fault("save:after_sync")
        doomed = temporary(target)
        if target.exists():  # a run resumed from an older checkpoint reaches the step again
            os.replace(target, doomed)
        os.replace(folder, target)
        fault("save:after_rename")
        sync(directory)  # the rename itself must survive a power cut before older checkpoints are removed
        if best:
            set_hint(directory, "best", step)
        fault("save:between_hints")
        set_hint(directory, "last", step)
    remove(doomed)
    prune(directory, keep=keep, current=step)


def _write_index(index: Path, parts: Sequence[Part]) -> None:
    """Write Hugging Face's index, the file name of each tensor."""
    weight_map = {
        name: numbered(MODEL, writer, len(parts)) for writer, part in enumerate(parts) for name in part.tensors
    }
    if len(weight_map) != sum(len(part.tensors) for part in parts):
        raise RuntimeError("two ranks wrote the same tensor")
    total_size = sum(part.total_size for part in parts)
    write_json(index, {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))})
