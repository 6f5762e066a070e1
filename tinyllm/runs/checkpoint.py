"""Finds, verifies and reads checkpoints; :mod:`tinyllm.runs.checkpoint_writer` writes them.

A checkpoint is a directory that exists completely or not at all: it is built under a temporary name, every file is
flushed, ``manifest.json`` with the sha256 of each file is written last, and the directory is renamed once. The files
``best`` and ``last`` beside the checkpoints each hold the name of one; they are hints and may be stale.

With several writers, each writes one numbered file of weights and one of state, and rank 0 adds Hugging Face's index of
the weights. No tensor is split over files, so any number of processes can read the checkpoint.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.runs.checkpoint_parts import STATE, numbered, read_state
from tinyllm.runs.layout import CHECKPOINTS, CONFIG, OVERRIDES, RUN_JSON
from tinyllm.runs.tensor_files import INDEX, MODEL, Tensors, Weights, weight_map
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.files import (
    TEMPORARY,
    expand_home,
    is_file_name,
    read_json,
    read_text,
    sha256,
    temporary,
    write_text,
)
from tinyllm.utils.files import remove as remove_files
from tinyllm.utils.nested import value_at

FORMAT = 1
MANIFEST = "manifest.json"
LONGEST_HINT = 100
"""Bytes in a file that names a checkpoint."""
HINTS = ("best", "last")
"""Files beside the checkpoints that hold the name of one."""
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk, verified against its manifest."""

    path: Path
    step: int
    manifest: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        """The directory of its run."""
        return self.path.parent.parent

    @property
    def writers(self) -> int:
        """The number of processes that wrote weights and state."""
        return int(self.manifest.get("writers", 1))

    def tensors(self) -> Tensors:
        """The model's tensors by name, read lazily.

        Raises:
            UserError: a file cannot be read.
        """
        return Tensors(self.path)

    def require(self, *facts: str) -> None:
        """Check that the manifest has these entries, given as dotted keys; :func:`verify` checks only the files.

        Raises:
            UserError: an entry is missing.
        """
        for fact in facts:
            if value_at(self.manifest, fact) is None:
                raise UserError("incomplete checkpoint", file=self.path / MANIFEST, hint=f"{fact} is missing")

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, on the CPU.

        Raises:
            UserError: a file cannot be read.
        """
        tensors = self.tensors()
        return {name: tensors.read(name) for name in tensors.names()}

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs besides the weights: plain containers and tensors, on the CPU.

        With several writers the tensors are memory-mapped: copy them, do not keep them.

        Raises:
            UserError: a file holds anything else; none of its code was executed.
        """
        return read_state(self.path, writers=self.writers)


def name_of(step: int) -> str:
    """The directory name of a step's checkpoint."""
    return f"step-{step:06d}"


def steps_in(directory: Path) -> dict[int, Path]:
    """The checkpoint directories by step, ascending, without unfinished ones."""
    if not directory.is_dir():
        return {}
    paths = {int(match[1]): path for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(paths.items()))


def set_hint(directory: Path, hint: str, step: int) -> None:
    """Make ``best`` or ``last`` name the checkpoint of ``step``."""
    write_text(directory / hint, name_of(step) + "\n")


def read_hint(directory: Path, hint: str) -> Path | None:
    """The checkpoint that ``best`` or ``last`` names; None if the file is missing or names no checkpoint."""
    try:
        name = read_text(directory / hint, largest=LONGEST_HINT).strip()
    except UserError:
        return None
    return directory / name if _NAME.fullmatch(name) and (directory / name).is_dir() else None


def clean(directory: Path) -> None:
    """Remove the unfinished files of killed writers. Call it only in the process that holds the run's lock."""
    for path in directory.glob(f"{TEMPORARY}*"):
        remove_files(path)


def prune(directory: Path, *, keep: int, current: int) -> None:
    """Remove old checkpoints, except the newest ``keep`` up to step ``current`` and the best one.

    Checkpoints of later steps are removed too: the run was resumed from an older one, so they belong to an abandoned
    branch.
    """
    best = read_hint(directory, "best")
    steps = steps_in(directory)
    newest = [step for step in steps if step <= current][-keep:]
    for step, path in steps.items():
        if step not in newest and path != best:
            remove(path)


def remove(path: Path) -> None:
    """Rename a checkpoint to a temporary name, then delete it, so that a partly deleted one is never seen."""
    doomed = temporary(path)
    with contextlib.suppress(OSError):
        os.replace(path, doomed)
        fault("save:mid_prune")
        remove_files(doomed)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, with every file compared with the manifest.

    Raises:
        UserError: a file is missing or damaged, or the format is unknown; the message names the file.
    """
    file = path / MANIFEST
    try:
        manifest = read_json(file, what="incomplete checkpoint")
        listed = dict(manifest["files"])
        step, writers = int(manifest["step"]), int(manifest.get("writers", 1))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("damaged manifest", file=file, hint=f"{type(error).__name__}: {error}") from error
    _check_facts(manifest, file)
    if (named := _NAME.fullmatch(path.name)) and int(named[1]) != step:
        hint = f"the manifest says step {step}; rename the directory back"
        raise UserError("the directory name and the manifest disagree about the step", file=path, hint=hint)
    if manifest.get("format") != FORMAT:
        hint = f"format {manifest.get('format')}; this version reads {FORMAT}"
        raise UserError("unknown checkpoint format", file=file, hint=hint)
    for name in _required(writers):
        if name not in listed:
            raise UserError("incomplete checkpoint", file=path / name, hint="the manifest does not list it")
    for name, facts in listed.items():
        member = path / name
        if member.parent != path or not member.is_file():  # an untrusted manifest may list ../secret
            raise UserError("checkpoint damaged", file=member, hint="the file is missing")
        # Check the size first: a truncated file is found without hashing gigabytes.
        if member.stat().st_size != facts["bytes"]:
            hint = f"{member.stat().st_size} bytes, the manifest says {facts['bytes']}"
            raise UserError("checkpoint damaged", file=member, hint=hint)
        if sha256(member) != facts["sha256"]:
            raise UserError("checkpoint damaged", file=member, hint="its content does not match the manifest's sha256")
    if writers > 1 and (unlisted := set(weight_map(path / INDEX).values()) - listed.keys()):
        raise UserError("damaged index", file=path / INDEX, hint=f"the manifest does not list {min(unlisted)}")
    return Checkpoint(path=path, step=step, manifest=manifest)


def _check_facts(manifest: dict[str, Any], file: Path) -> None:
    """Check the types and ranges of the manifest's entries."""
    data, files = manifest.get("data", {}), manifest["files"]
    counts = {name: manifest.get(name, 1) for name in ("writers", "world_size", "max_steps")}
    wrong = [name for name, value in counts.items() if type(value) is not int or value < 1]
    if type(manifest["step"]) is not int or manifest["step"] < 0:
        wrong.append("step")
    if not isinstance(data, dict) or not all(isinstance(digest, str) for digest in data.values()):
        wrong.append("data")
    if not isinstance(manifest.get("adapters", {}), dict):
        wrong.append("adapters")
    changes = manifest.get("changes", [])
    if not isinstance(changes, list) or not all(type(sample) is int and sample >= 0 for sample in changes):
        wrong.append("changes")
    if not isinstance(manifest.get("precision", ""), str):
        wrong.append("precision")
    for name, facts in files.items():
        sound = isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str)
        if not sound or not is_file_name(name):
            wrong.append(f"files: {name[:40]}")
    if wrong:
        raise UserError("damaged manifest", file=file, hint=f"{wrong[0]} has an unexpected value")


def _required(writers: int) -> Iterator[str]:
    """The files that every checkpoint must have."""
    for writer in range(writers):
        yield numbered(MODEL, writer, writers)
        yield numbered(STATE, writer, writers)
    if writers > 1:
        yield INDEX
    yield from (CONFIG, OVERRIDES)


def full_location(where: str | Path) -> Path:
    """The path of a run or checkpoint, including the parent directories that show which run a checkpoint belongs to.

    A path stays as typed unless it contains ``..``, is ``.``, or names a checkpoint from inside ``checkpoints/`` or
    through a link. ``checkpoints/best`` and ``last`` become the path of the checkpoint that the file names.

    Raises:
        UserError: the path begins with ``~`` and no home directory is known.
    """
    path = expand_home(where)
    if path.name in HINTS and path.is_file():
        path = read_hint(path.parent, path.name) or path
    if ".." in path.parts or not path.name:
        path = path.resolve()
    if _is_checkpoint(path) and path.parent.name != CHECKPOINTS:
        path = path.resolve()
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent if path.name == CHECKPOINTS else path
    return path if run.name else path.absolute()


def _is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).exists() and not (path / CHECKPOINTS).is_dir()


def run_of(path: Path) -> Path | None:
    """The run directory of a path to a run, its ``checkpoints`` folder or a checkpoint; None if it has no run."""
    directory = full_location(path)
    if _is_checkpoint(directory):
        directory = directory.parent
        if directory.name != CHECKPOINTS:
            return None
    run = directory.parent if directory.name == CHECKPOINTS else directory
    return run if (run / RUN_JSON).is_file() else None


def find(
    where: str | Path, *, prefer: str = "last", tell: Callable[[str], None] = lambda text: None, key: str = "run"
) -> Checkpoint:
    """The verified checkpoint of a run, or at a path.

    Args:
        where: a run directory, its ``checkpoints`` folder, a checkpoint, or the file ``checkpoints/best`` or ``last``.
        prefer: ``last`` (the newest), ``best``, or the name or path of a checkpoint.
        tell: called with a sentence when a damaged checkpoint is skipped.
        key: the setting that gave ``where``, for messages.

    Raises:
        UserError: there is no checkpoint; or none is complete, and the message lists each with its reason.
    """
    path = full_location(where)
    if not path.exists():
        raise UserError("no such directory", key=key, value=where, hint="a run directory or one of its checkpoints")
    if _is_checkpoint(path):
        return verify(path)
    directory = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    steps = steps_in(directory)
    if not steps:
        raise UserError("no checkpoint found", key=key, value=where, hint="a run directory has checkpoints/step-…")
    if prefer not in ("last", "best"):
        candidates = (full_location(prefer), directory / prefer)
        chosen = next((path for path in candidates if (path / MANIFEST).exists()), None)
        if chosen is None:
            names = ", ".join(path.name for path in steps.values())
            raise UserError("no such checkpoint", key="checkpoint", value=prefer, hint=f"best, last or one of {names}")
        return verify(chosen)
    order = [steps[step] for step in reversed(steps)]
    # Hints are not authoritative: the newest step wins over `last`, and without `best` the newest is used.
    best = read_hint(directory, "best") if prefer == "best" else None
    if best is not None:
        order = [best, *(path for path in order if path != best)]
    reasons = []
    for candidate in order:
        try:
            checkpoint = verify(candidate)
        except UserError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            tell(f"{reason}; using {checkpoint.path.name} instead")
        return checkpoint
    raise UserError("no complete checkpoint", key=key, value=where, hint="; ".join(reasons))


def check_shapes(saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor], *, file: Path) -> None:
    """Check that names and shapes of saved tensors are those of a model's tensors.

    Raises:
        UserError: they differ; the message names the first tensor that differs.
    """
    for name in [*wanted, *saved]:
        shape = tuple(wanted[name].shape) if name in wanted else "missing"
        if saved.get(name) != shape:
            hint = f"{name} is {saved.get(name, 'missing')} in the file and {shape} in the model"
            raise UserError("the weights do not fit this model", file=file, hint=hint)


@torch.no_grad()
def load_weights(
    weights: Weights,
    wanted: Mapping[str, Tensor],
    *,
    file: Path,
    rows: Callable[[str, Tensor], slice | None] = lambda name, tensor: None,
    local: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Copy weights into a model's tensors; both must have the same names and shapes.

    Args:
        wanted: the model's tensors by name.
        file: where the weights come from, for messages.
        rows: maps a tensor's name and the model's tensor to the rows that this process holds; None: all rows.
        local: maps the model's tensor to the part that holds those rows.

    Raises:
        UserError: names or shapes differ, or a file cannot be read.
    """
    check_shapes({name: weights.shape(name) for name in weights.names()}, wanted, file=file)
    for name, tensor in wanted.items():
        local(tensor).copy_(weights.read(name, rows(name, tensor)))
