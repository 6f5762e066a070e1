"""Checkpoints: directories that are whole or not there.

A checkpoint is built under a temporary name, every file flushed, ``manifest.json`` with the sha256 of each file
written last, and the directory renamed once. ``best`` and ``last`` beside the checkpoints are hints that name one.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyllm.data.atomic import sync
from tinyllm.errors import UserError
from tinyllm.training.files import sha256, translated, write_atomic, write_json

FORMAT = 1
MODEL, STATE, CONFIG, OVERRIDES = "model.safetensors", "state.pt", "config.yaml", "overrides.yaml"
TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"
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

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by clean name, on the CPU.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return load_file(self.path / MODEL)
        except SafetensorError as error:
            raise UserError("checkpoint damaged", file=self.path / MODEL, hint=str(error)) from error

    def state(self) -> dict[str, Any]:
        """Everything besides the weights that a resume needs: plain containers and tensors, on the CPU.

        Raises:
            UserError: the file holds anything else; nothing of it was executed.
        """
        file = self.path / STATE
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the damage leads to
            raise UserError("unreadable state", file=file, hint=str(error).split(". ")[0]) from error
        return state


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:06d}"


def steps_in(directory: Path) -> dict[int, Path]:
    """Checkpoint directories by step, ascending; temporary ones are not among them."""
    if not directory.is_dir():
        return {}
    found = {int(m[1]): path for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def save(
    directory: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    texts: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of ``step`` below ``directory``; when this returns it is durable.

    Args:
        weights: tensors by name; a tied tensor once.
        state: plain containers and tensors (loadable with ``weights_only=True``).
        texts: further files by name, e.g. the configuration.
        facts: go into the manifest beside the checksums.

    Raises:
        UserError: the disk is full or cannot be written; checkpoints before it are untouched.
    """
    target = directory / name_of(step)
    temporary = directory / f".tmp-{os.getpid()}-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with translated(target):
            temporary.mkdir()
            save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, temporary / MODEL)
            torch.save(dict(state), temporary / STATE)
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
            files = sorted(path for path in temporary.iterdir())
            for path in files:
                sync(path)
            listed = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
            manifest = {"format": FORMAT, "step": step, **facts, "files": listed}
            write_json(temporary / MANIFEST, manifest)
            sync(temporary)
            if target.exists():  # the same step again, after a resume from an older one
                doomed = directory / f".tmp-{os.getpid()}-old-{target.name}"
                os.replace(target, doomed)
                os.replace(temporary, target)
                shutil.rmtree(doomed, ignore_errors=True)
            else:
                os.replace(temporary, target)
            sync(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def set_hint(directory: Path, hint: str, step: int) -> None:
    """Let ``best`` or ``last`` name the checkpoint of ``step``."""
    write_atomic(directory / hint, lambda path: _write(path, name_of(step) + "\n"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_hint(directory: Path, hint: str) -> Path | None:
    """The checkpoint a hint names; None when the hint is missing or names none."""
    try:
        name = (directory / hint).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return directory / name if _NAME.fullmatch(name) and (directory / name).is_dir() else None


def clean(directory: Path) -> None:
    """Remove what killed writers left; only for the process that holds the run's lock."""
    for path in directory.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def prune(directory: Path, *, keep: int, current: int) -> None:
    """Remove old checkpoints: the newest ``keep`` up to ``current`` and the best stay; those beyond ``current`` go.

    Checkpoints of later steps are left over from a future that a resume from an older checkpoint has abandoned.
    """
    best = read_hint(directory, "best")
    steps = steps_in(directory)
    kept = {directory / name_of(step) for step in [one for one in steps if one <= current][-keep:]}
    for path in steps.values():
        if path not in kept and path != best:
            shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, after its manifest was compared with its files.

    Raises:
        UserError: a file is missing, damaged or not of this format; the reason names it.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        listed = manifest["files"]
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "not a whole checkpoint", file=file, hint=f"manifest missing or damaged ({type(error).__name__})"
        ) from error
    if manifest.get("format") != FORMAT:
        raise UserError(
            "unknown checkpoint format", file=file, hint=f"format {manifest.get('format')}; this version reads {FORMAT}"
        )
    for name in (MODEL, STATE, CONFIG, OVERRIDES):
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
    return Checkpoint(path=path, step=step, manifest=manifest)


def find(
    where: str | Path, *, prefer: str = "last", tell: Callable[[str], None] = lambda text: None, key: str = "run"
) -> Checkpoint:
    """The checkpoint that a person means by a run or checkpoint directory.

    Args:
        where: a run directory, its ``checkpoints`` directory, or one checkpoint.
        prefer: ``last`` (the newest), ``best``, or the name or path of one checkpoint.
        tell: called with a sentence when a damaged checkpoint is passed over.
        key: the setting that named ``where``, for messages.

    Raises:
        UserError: there is none, or none that is whole; then each is listed with its reason.
    """
    path = Path(where)
    if not path.exists():
        raise UserError("no such directory", key=key, value=where, hint="a run directory or one of its checkpoints")
    if _NAME.fullmatch(path.name) and (path / MANIFEST).exists():
        return verify(path)
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    steps = steps_in(directory)
    if not steps:
        raise UserError("no checkpoint there", key=key, value=where, hint="a run directory holds checkpoints/step-…")
    if prefer not in ("last", "best"):
        chosen = next((one for one in (Path(prefer), directory / prefer) if (one / MANIFEST).exists()), None)
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


def check_fits(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    """Compare the names and shapes of a checkpoint's weights with the model's, without reading the weights.

    Raises:
        UserError: they differ; the line names the first that does.
    """
    file = checkpoint.path / MODEL
    with safe_open(file, framework="pt") as weights:
        saved = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    check_shapes(saved, model, file=file)


def check_shapes(saved: Mapping[str, tuple[int, ...]], model: torch.nn.Module, *, file: Path) -> None:
    """Compare names and shapes of tensors with those of a model.

    Raises:
        UserError: they differ; the line names the first that does.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            hint = f"{name} is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} in this model"
            raise UserError("the weights are not of this architecture", file=file, hint=hint)


def load_weights(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    """Load a checkpoint's weights into ``model``, every tensor of both.

    Raises:
        UserError: names or shapes differ, or the file cannot be read.
    """
    try:
        check_fits(checkpoint, model)
        model.load_state_dict(checkpoint.weights())
    except SafetensorError as error:
        raise UserError("checkpoint damaged", file=checkpoint.path / MODEL, hint=str(error)) from error
