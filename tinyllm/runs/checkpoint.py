"""Checkpoints: directories that are whole or not there.

A checkpoint is built under a temporary name, every file flushed, ``manifest.json`` with the sha256 of each file
written last, and the directory renamed once. ``best`` and ``last`` beside the checkpoints are hints that name one.

Here they are found, verified and read; :mod:`tinyllm.runs.checkpoint_writer` writes them. A checkpoint of several
writers has a numbered file of weights and one of state from each, and Hugging Face's index of the weights. Every tensor
is whole in
one of the files, so the number of processes that read them is free.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.runs.checkpoint_parts import STATE, numbered, read_state
from tinyllm.runs.layout import CHECKPOINTS, CONFIG, OVERRIDES, RUN_JSON
from tinyllm.runs.tensor_files import INDEX, MODEL, Tensors, weight_map
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.files import TEMPORARY, in_home, is_file_name, read_json, read_text, sha256, temporary, write_text
from tinyllm.utils.files import remove as remove_files
from tinyllm.utils.nested import value_at

FORMAT = 1
MANIFEST = "manifest.json"
LONGEST_HINT = 100
"""Bytes of a file that names a checkpoint."""
HINTS = ("best", "last")
"""Files beside the checkpoints that hold the name of one."""
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk, its manifest verified."""

    path: Path
    step: int
    manifest: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        """The run it belongs to."""
        return self.path.parent.parent

    @property
    def writers(self) -> int:
        """How many processes wrote weights and state."""
        return int(self.manifest.get("writers", 1))

    def tensors(self) -> Tensors:
        """The model's tensors by clean name, none of them read yet.

        Raises:
            UserError: a file cannot be read.
        """
        return Tensors(self.path)

    def require(self, *facts: str) -> None:
        """Refuse a manifest that lacks facts, ``a.b`` being one in a mapping; verifying asks for the files alone.

        Raises:
            UserError: one is missing.
        """
        for fact in facts:
            if value_at(self.manifest, fact) is None:
                raise UserError("not a whole checkpoint", file=self.path / MANIFEST, hint=f"{fact} is missing")

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by clean name, on the CPU.

        Raises:
            UserError: a file cannot be read.
        """
        tensors = self.tensors()
        return {name: tensors.read(name) for name in tensors.names()}

    def state(self) -> dict[str, Any]:
        """Everything besides the weights that a resume needs: plain containers and tensors, on the CPU.

        With several writers the tensors are read from the files when they are used: keep copies, not them.

        Raises:
            UserError: a file holds anything else; nothing of it was executed.
        """
        return read_state(self.path, writers=self.writers)


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:06d}"


def steps_in(directory: Path) -> dict[int, Path]:
    """Checkpoint directories by step, ascending; temporary ones are not among them."""
    if not directory.is_dir():
        return {}
    found = {int(m[1]): path for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def set_hint(directory: Path, hint: str, step: int) -> None:
    """Let ``best`` or ``last`` name the checkpoint of ``step``."""
    write_text(directory / hint, name_of(step) + "\n")


def read_hint(directory: Path, hint: str) -> Path | None:
    """The checkpoint a hint names; None when the hint is missing or names none."""
    try:
        name = read_text(directory / hint, largest=LONGEST_HINT).strip()
    except UserError:
        return None
    return directory / name if _NAME.fullmatch(name) and (directory / name).is_dir() else None


def clean(directory: Path) -> None:
    """Remove what killed writers left; only for the process that holds the run's lock."""
    for path in directory.glob(f"{TEMPORARY}*"):
        remove_files(path)


def prune(directory: Path, *, keep: int, current: int) -> None:
    """Remove old checkpoints: the newest ``keep`` up to ``current`` and the best stay; those beyond ``current`` go.

    Checkpoints of later steps are left over from a future that a resume from an older checkpoint has abandoned.
    """
    best = read_hint(directory, "best")
    steps = steps_in(directory)
    kept = {directory / name_of(step) for step in [one for one in steps if one <= current][-keep:]}
    for path in steps.values():
        if path not in kept and path != best:
            remove(path)


def remove(path: Path) -> None:
    """Take a checkpoint's name away, then its files, so that none is ever there in part."""
    doomed = temporary(path)
    with contextlib.suppress(OSError):
        os.replace(path, doomed)
        fault("save:mid_prune")
        remove_files(doomed)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, after its manifest was compared with its files.

    Raises:
        UserError: a file is missing, damaged or not of this format; the reason names it.
    """
    file = path / MANIFEST
    try:
        manifest = read_json(file, what="not a whole checkpoint")
        listed = dict(manifest["files"])
        step, writers = int(manifest["step"]), int(manifest.get("writers", 1))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "not a whole checkpoint", file=file, hint=f"a damaged manifest ({type(error).__name__}: {error})"
        ) from error
    _check_facts(manifest, file)
    if (named := _NAME.fullmatch(path.name)) and int(named[1]) != step:
        hint = f"its manifest says step {step}; give the directory back its name"
        raise UserError("not the checkpoint of that step", file=path, hint=hint)
    if manifest.get("format") != FORMAT:
        raise UserError(
            "unknown checkpoint format", file=file, hint=f"format {manifest.get('format')}; this version reads {FORMAT}"
        )
    for name in _required(writers):
        if name not in listed:
            raise UserError("not a whole checkpoint", file=path / name, hint="the manifest does not list it")
    for name, facts in listed.items():
        member = path / name
        if member.parent != path or not member.is_file():
            raise UserError("checkpoint damaged", file=member, hint="the file is missing")
        if member.stat().st_size != facts["bytes"]:
            hint = f"{member.stat().st_size} bytes, the manifest says {facts['bytes']}"
            raise UserError("checkpoint damaged", file=member, hint=hint)
        if sha256(member) != facts["sha256"]:
            raise UserError("checkpoint damaged", file=member, hint="its content does not match the manifest's sha256")
    if writers > 1 and (strange := set(weight_map(path / INDEX).values()) - listed.keys()):
        raise UserError("damaged index", file=path / INDEX, hint=f"the manifest does not list {min(strange)}")
    return Checkpoint(path=path, step=step, manifest=manifest)


def _check_facts(manifest: dict[str, Any], file: Path) -> None:
    """Refuse a manifest whose facts are not of the kind that a resume reckons with."""
    data, files = manifest.get("data", {}), manifest["files"]
    counts = {name: manifest.get(name, 1) for name in ("writers", "world_size", "max_steps")}
    wrong = [name for name, value in counts.items() if type(value) is not int or value < 1]
    if type(manifest["step"]) is not int or manifest["step"] < 0:
        wrong.append("step")
    if not isinstance(data, dict) or not all(isinstance(one, str) for one in data.values()):
        wrong.append("data")
    if not isinstance(manifest.get("precision", ""), str):
        wrong.append("precision")
    for name, facts in files.items():
        sound = isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str)
        if not sound or not is_file_name(name):
            wrong.append(f"files: {name[:40]}")
    if wrong:
        raise UserError("not a whole checkpoint", file=file, hint=f"a damaged manifest: {wrong[0]}")


def _required(writers: int) -> Iterator[str]:
    """The files without which a checkpoint is of no use."""
    for writer in range(writers):
        yield numbered(MODEL, writer, writers)
        yield numbered(STATE, writer, writers)
    if writers > 1:
        yield INDEX
    yield from (CONFIG, OVERRIDES)


def located(where: str | Path) -> Path:
    """The directory that a person means, under a name that shows what it lies in.

    A path stays as it was typed, unless it leads up (``..``), is ``.``, or is that of a checkpoint by its bare name or
    by a link: the run of a checkpoint is the directory two levels above it. ``checkpoints/best`` and ``last`` are the
    checkpoints that these files name.

    Raises:
        UserError: it begins with ``~`` and there is no home directory.
    """
    path = in_home(where)
    if path.name in HINTS and path.is_file():
        path = read_hint(path.parent, path.name) or path
    if ".." in path.parts or not path.name:
        path = path.resolve()
    if _is_one(path) and path.parent.name != CHECKPOINTS:
        path = path.resolve()
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent if path.name == CHECKPOINTS else path
    return path if run.name else path.absolute()


def _is_one(path: Path) -> bool:
    return (path / MANIFEST).exists() and not (path / CHECKPOINTS).is_dir()


def run_of(path: Path) -> Path | None:
    """The run that a directory is, is the ``checkpoints`` of, or is a checkpoint of; None: it lies in none."""
    place = located(path)
    if _is_one(place):
        place = place.parent
        if place.name != CHECKPOINTS:
            return None
    run = place.parent if place.name == CHECKPOINTS else place
    return run if (run / RUN_JSON).is_file() else None


def find(
    where: str | Path, *, prefer: str = "last", tell: Callable[[str], None] = lambda text: None, key: str = "run"
) -> Checkpoint:
    """The checkpoint that a person means by a run or checkpoint directory.

    Args:
        where: a run directory, its ``checkpoints`` directory, one checkpoint, or the file beside it that names it
            (``checkpoints/best``, ``checkpoints/last``).
        prefer: ``last`` (the newest), ``best``, or the name or path of one checkpoint.
        tell: called with a sentence when a damaged checkpoint is passed over.
        key: the setting that named ``where``, for messages.

    Raises:
        UserError: there is none, or none that is whole; then each is listed with its reason.
    """
    path = located(where)
    if not path.exists():
        raise UserError("no such directory", key=key, value=where, hint="a run directory or one of its checkpoints")
    if _is_one(path):
        return verify(path)
    directory = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    steps = steps_in(directory)
    if not steps:
        raise UserError("no checkpoint there", key=key, value=where, hint="a run directory holds checkpoints/step-…")
    if prefer not in ("last", "best"):
        chosen = next((one for one in (located(prefer), directory / prefer) if (one / MANIFEST).exists()), None)
        if chosen is None:
            names = ", ".join(one.name for one in steps.values())
            raise UserError("no such checkpoint", key="checkpoint", value=prefer, hint=f"best, last or one of {names}")
        return verify(chosen)
    order = [steps[step] for step in reversed(steps)]
    best = read_hint(directory, "best") if prefer == "best" else None
    if best is not None:
        order = [best, *(one for one in order if one != best)]
    reasons = []
    for candidate in order:
        try:
            found = verify(candidate)
        except UserError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            tell(f"{reason}; using {found.path.name} instead")
        return found
    raise UserError("no whole checkpoint", key=key, value=where, hint="; ".join(reasons))


def check_fits(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Compare the names and shapes of a checkpoint's weights with the model's, without reading the weights.

    Raises:
        UserError: they differ; the line names the first that does.
    """
    tensors = checkpoint.tensors()
    check_shapes({name: tensors.shape(name) for name in tensors.names()}, model, file=checkpoint.path / MODEL)


def check_shapes(saved: Mapping[str, tuple[int, ...]], model: nn.Module, *, file: Path) -> None:
    """Compare names and shapes of tensors with those of a model.

    Raises:
        UserError: they differ; the line names the first that does.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            hint = f"{name} is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} in this model"
            raise UserError("the weights are not of this architecture", file=file, hint=hint)


@torch.no_grad()
def load_weights(
    checkpoint: Checkpoint,
    model: nn.Module,
    *,
    rows: Callable[[str, Tensor], slice | None] = lambda name, tensor: None,
    local: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Load a checkpoint's weights into ``model``, every tensor of both.

    Args:
        rows: of a tensor's name and the model's tensor: which rows this process has; None: all.
        local: of the model's tensor: where those rows are.

    Raises:
        UserError: names or shapes differ, or a file cannot be read.
    """
    check_fits(checkpoint, model)
    tensors = checkpoint.tensors()
    for name, tensor in model.state_dict().items():
        local(tensor).copy_(tensors.read(name, rows(name, tensor)))
