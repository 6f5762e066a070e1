"""The models that can write: finding their checkpoints, and loading one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.config.targets import Option
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.decoding_kernels import kernels_for
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.runs.checkpoint import MANIFEST, read_hint, steps_in
from tinyllm.runs.layout import CHECKPOINTS
from tinyllm.runs.listing import run_dirs
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.device import autocast, compute_dtype, pick_device

PRECISION = "fp32"
"""The default of generate, so that both give the same text."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        template: its chat template; None: it has none.
        why_no_chat: the reason, where it has none.
        notes: what was said while it was loaded.
    """

    model: Any
    tokenizer: Tokenizer
    template: ChatTemplate | None
    why_no_chat: str = ""
    autocast: Autocast
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointId:
    """One checkpoint as it is on disk now; a run that was trained anew has others under the same names."""

    path: Path
    written_ns: int


def writable_runs(outputs: Path) -> dict[str, Path]:
    """The runs below a folder that have a checkpoint, by their path below it; the one saved last comes first."""
    saved: dict[Path, int] = {}
    for run in run_dirs(outputs) if outputs.is_dir() else ():
        try:
            if steps_in(run / CHECKPOINTS):
                saved[run] = (run / CHECKPOINTS).stat().st_mtime_ns
        except OSError:  # removed meanwhile, or not ours to read
            continue
    newest_first = sorted(saved, key=lambda run: (-saved[run], run))
    return {run.relative_to(outputs).as_posix(): run for run in newest_first}


def checkpoints(run: Path) -> dict[str, str]:
    """The checkpoints of a run by name, the newest first, each with a label that says which is the best.

    Empty if the run is gone.
    """
    try:
        steps = steps_in(run / CHECKPOINTS)
        best = read_hint(run / CHECKPOINTS, "best")
    except OSError:
        return {}
    newest = max(steps, default=0)
    marks = {step: [*["newest"] * (step == newest), *["best"] * (path == best)] for step, path in steps.items()}
    return {
        steps[step].name: f"step {step:,}" + (f" ({', '.join(marks[step])})" if marks[step] else "")
        for step in reversed(steps)
    }


def identified(run: Path, name: str) -> CheckpointId:
    """A checkpoint of a run.

    Raises:
        UserError: it is not there (any more); ``name`` may come from a browser and is no path.
    """
    path = steps_by_name(run).get(name)
    try:
        if path is not None:
            return CheckpointId(path, (path / MANIFEST).stat().st_mtime_ns)
    except OSError:
        pass
    raise UserError("the checkpoint is no longer there", key="checkpoint", value=name, hint="choose another one")


def steps_by_name(run: Path) -> dict[str, Path]:
    """The checkpoints of a run by the names of their directories."""
    return {path.name: path for path in steps_in(run / CHECKPOINTS).values()}


def load(which: CheckpointId, *, allow: Callable[[], frozenset[Option]] = frozenset) -> LoadedModel:
    """Load a checkpoint as ``generate`` does with its defaults.

    Args:
        allow: gives the options besides those of ``conf/`` whose classes the run's configuration may name.

    Raises:
        UserError: it cannot be loaded, or it cannot write.
    """
    notes: list[str] = []
    options = allow()
    saved = open_saved(which.path, allow=options, tell=notes.append)
    device = pick_device("auto", key="device")
    model = model_of(saved, device=device, allow=options)
    model.for_inference(compute_dtype(PRECISION), kernels=kernels_for(device))
    template, why_no_chat = None, ""
    try:
        template = saved_template(saved)
        template.require(saved.tokenizer)
    except UserError as error:  # it continues texts all the same
        template, why_no_chat = None, str(error)
    return LoadedModel(
        model=model,
        tokenizer=saved.tokenizer,
        template=template,
        why_no_chat=why_no_chat,
        autocast=partial(autocast, device, PRECISION),
        notes=tuple(notes),
    )
