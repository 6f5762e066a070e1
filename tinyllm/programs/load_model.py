"""Load a trained model from a run directory or from a directory in Hugging Face format."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tinyllm.config.saved import saved_config
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.interop.directory import is_model
from tinyllm.interop.tokenizer import adds_bos
from tinyllm.programs.builders import META, build_model, scores_answers, without_adapters
from tinyllm.programs.saved_model import SavedModel, open_hugging_face, with_special_ids
from tinyllm.programs.saved_weights import LoadedWeights, with_adapters
from tinyllm.runs.checkpoint import Checkpoint, check_shapes, find
from tinyllm.runs.layout import CONFIG, TEMPLATE, TOKENIZER
from tinyllm.runs.state_schema import read_checked
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.utils.files import read_text
from tinyllm.utils.memory import memory_for


def load(
    run: str | Path,
    *,
    checkpoint: str = "best",
    weights: str = "auto",
    device: str | torch.device = "cpu",
    allow: frozenset[Option] = frozenset(),
    tell: Callable[[str], None] = warnings.warn,
) -> tuple[Any, Tokenizer]:
    """The model of a run with its trained weights, in evaluation mode, and its tokenizer.

    Args:
        run: a run directory, one of its checkpoints, or a directory in Hugging Face format (config.json and
            safetensors).
        checkpoint: ``best`` (the newest if none was evaluated), ``last``, or a checkpoint directory.
        weights: ``raw``: as the optimizer left them; ``ema``: their moving average; ``auto``: the average if the run
            has one, else raw.
        allow: options besides those of ``conf/``, whose classes the run's configuration may name:
            ``tinyllm.config.targets.options_of(Path("my_conf"))``.
        tell: called with a sentence when a damaged checkpoint is skipped.

    Raises:
        UserError: no undamaged checkpoint, a class that is not allowed, weights that are missing or do not fit, or a
            Hugging Face model that tinyllm cannot express.
    """
    saved = open_saved(run, checkpoint=checkpoint, allow=allow, tell=tell)
    return model_of(saved, weights=weights, device=device, allow=allow), saved.tokenizer


def model_of(
    saved: SavedModel,
    *,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    allow: frozenset[Option] = frozenset(),
    scores: bool = False,
) -> Any:
    """A saved model with its weights, in evaluation mode; see :func:`load`.

    Args:
        scores: a reward model is wanted or will do; otherwise it is refused, for it writes no text.

    Raises:
        UserError: see :func:`load`.
    """
    if not scores and scores_answers(saved.cfg, allow=allow):
        hint = "it scores answers and writes no text: name a language model, or use it as reward=[model]"
        raise UserError(
            "the run is a reward model", key="run", value=str(saved.path), hint=f"{hint} reward.model.run=…"
        )
    model: nn.Module = build_saved(saved, device=torch.device(device), allow=allow)
    with memory_for(
        f"the weights of {saved.path}", hint="the model and a copy of its weights must fit in memory together"
    ):
        fill(model, saved.weights(weights), file=saved.path)
    return model.eval()


def build_saved(saved: SavedModel, *, device: torch.device = META, allow: frozenset[Option] = frozenset()) -> Any:
    """Build a saved model without loading its weights: newly initialized, or unallocated on ``meta``.

    Raises:
        UserError: a configuration that cannot be built.
    """
    return build_model(saved.cfg, vocab_size=saved.tokenizer.vocab_size, seed=0, device=device, allow=allow)


def open_saved(
    run: str | Path,
    *,
    checkpoint: str = "best",
    allow: frozenset[Option] = frozenset(),
    tell: Callable[[str], None] = warnings.warn,
) -> SavedModel:
    """The model in a directory, without reading its weights; see :func:`load`.

    Raises:
        UserError: no undamaged checkpoint, or a Hugging Face model that tinyllm cannot express.
    """
    if is_model(run):
        if checkpoint not in ("best", "last"):
            hint = f"{run} is not a tinyllm run and holds a single model; leave it out"
            raise UserError("no checkpoints to choose from", key="checkpoint", value=checkpoint, hint=hint)
        return open_hugging_face(run, tell=tell)
    opened = find(run, prefer=checkpoint, tell=tell)
    opened.require("data.tokenizer")
    cfg = saved_config(opened.path / CONFIG, allow=allow)
    tokenizer, imported = load_tokenizer(opened.path / TOKENIZER), opened.manifest.get("imported", {})
    special = imported.get("special", {})
    if special:
        # Imports by the first versions did not record adds_bos.
        adds = imported.get("adds_bos", adds_bos(tokenizer, special.get("bos_token_id")))
        tokenizer = with_special_ids(tokenizer, special, adds_bos=adds)
    return SavedModel(
        path=opened.path,
        cfg=without_adapters(cfg),
        settings=[],
        tokenizer=tokenizer,
        step=opened.step,
        data=opened.manifest["data"],
        special=special,
        chat=imported.get("chat") or stored_template(opened.path),
        weights=partial(checkpoint_weights, opened, cfg),
    )


def stored_template(checkpoint: Path) -> dict[str, Any]:
    """The chat template of a checkpoint that was trained on conversations, by file name; empty without one."""
    file = checkpoint / TEMPLATE
    return {TEMPLATE: read_text(file)} if file.is_file() else {}


def checkpoint_weights(checkpoint: Checkpoint, cfg: DictConfig, kind: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, adapters added: ``raw``, ``ema`` or ``auto``.

    Raises:
        UserError: ``ema`` of a run without averaged weights; or the weights that its adapters belong to are missing or
            have changed.
    """
    averaged = cfg.get("ema", {}).get("enabled") and kind != "raw"
    shadow = read_checked(checkpoint).get("average", {}).get("shadow", {}) if averaged else {}
    if kind == "ema" and not shadow:
        raise UserError("the run has no averaged weights", key="weights", value=kind, hint="auto or raw")
    weights = with_adapters(checkpoint, LoadedWeights(checkpoint.weights() | shadow))
    return {name: weights.read(name) for name in weights.names()}


def fill(model: nn.Module, weights: dict[str, Tensor], *, file: Path) -> None:
    """Load weights into a model; both must have the same tensors.

    Raises:
        UserError: names or shapes differ; the error names the first.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, model.state_dict(), file=file)
    model.load_state_dict(weights)
