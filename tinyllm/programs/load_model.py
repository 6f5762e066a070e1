"""Load a trained model from a run directory or from a directory in Hugging Face format."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tinyllm.config.compose import compose
from tinyllm.config.grammar import quote
from tinyllm.config.saved import saved_config
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.interop.architecture import architecture_of, settings_of
from tinyllm.interop.directory import CONFIG as HF_CONFIG
from tinyllm.interop.directory import ModelDirectory, is_model
from tinyllm.interop.tokenizer import adds_bos, read_chat_templates
from tinyllm.interop.tokenizer import read as read_tokenizer
from tinyllm.programs.builders import META, build_model
from tinyllm.runs.checkpoint import Checkpoint, check_shapes, find
from tinyllm.runs.layout import CONFIG, TOKENIZER
from tinyllm.runs.state_schema import read_checked
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.utils.memory import memory_for


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A model on disk: a checkpoint of tinyllm, or a directory in Hugging Face format.

    Attributes:
        path: the checkpoint or the directory.
        cfg: the configuration, resolved.
        settings: the overrides that compose it; empty for a checkpoint.
        step: optimizer steps it was trained for by tinyllm.
        data: fingerprints of its training data; of a Hugging Face model, of the tokenizer alone.
        special: ids of special tokens as config.json has them; empty for a model trained by tinyllm.
        chat: chat templates of a Hugging Face model, by file name.
        weights: gives the tensors by name; ``raw``, ``ema`` or ``auto``, see :func:`load`.
    """

    path: Path
    cfg: DictConfig
    settings: list[str]
    tokenizer: Tokenizer
    step: int
    data: dict[str, str]
    special: dict[str, Any]
    chat: dict[str, Any]
    weights: Callable[[str], dict[str, Tensor]]


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
) -> Any:
    """A saved model with its weights, in evaluation mode; see :func:`load`."""
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
        cfg=cfg,
        settings=[],
        tokenizer=tokenizer,
        step=opened.step,
        data=opened.manifest["data"],
        special=special,
        chat=imported.get("chat", {}),
        weights=partial(checkpoint_weights, opened, cfg),
    )


def checkpoint_weights(checkpoint: Checkpoint, cfg: DictConfig, kind: str) -> dict[str, Tensor]:
    """The weights of a checkpoint: ``raw``, ``ema`` or ``auto``.

    Raises:
        UserError: ``ema`` of a run without averaged weights.
    """
    averaged = cfg.get("ema", {}).get("enabled") and kind != "raw"
    shadow = read_checked(checkpoint).get("average", {}).get("shadow", {}) if averaged else {}
    if kind == "ema" and not shadow:
        raise UserError("the run has no averaged weights", key="weights", value=kind, hint="auto or raw")
    return checkpoint.weights() | shadow


def open_hugging_face(
    path: str | Path, *, tokenizer_file: Path | None = None, tell: Callable[[str], None] = warnings.warn
) -> SavedModel:
    """The model in a directory in Hugging Face format, without reading its weights.

    Args:
        tokenizer_file: the tokenizer file that the configuration names; None: the one in the directory.
        tell: called with notes for the user.

    Raises:
        UserError: not a model, or one that tinyllm cannot express; the error names the entry of config.json.
    """
    directory = ModelDirectory(path)
    vocab_size = directory.arch.value("model.vocab_size")
    tokenizer = read_tokenizer(directory.path, vocab_size=vocab_size, tell=tell)
    special = directory.special()
    adds = adds_bos(tokenizer, special["bos_token_id"], directory.path)
    tokenizer = with_special_ids(tokenizer, special, adds_bos=adds)
    settings = settings_of(directory.arch)
    if isinstance(tokenizer, IdsTokenizer):
        settings += ["tokenizer=ids", f"tokenizer.vocab_size={vocab_size}"]
    else:
        file = tokenizer_file or (directory.path / TOKENIZER).absolute()
        settings += ["tokenizer=pretrained", f"tokenizer.path={quote(str(file))}"]
    cfg = compose(*settings)
    try:
        meta_model = build_model(cfg, vocab_size=tokenizer.vocab_size, seed=0, device=META, allow=frozenset())
    except RuntimeError as error:  # torch refuses a size that overflows 64 bits
        raise UserError("sizes too large for any machine", file=directory.path / HF_CONFIG, hint=str(error)) from error
    assert architecture_of(meta_model) == directory.arch, "the settings differ from config.json"
    return SavedModel(
        path=directory.path,
        cfg=cfg,
        settings=settings,
        tokenizer=tokenizer,
        step=0,
        data={"tokenizer": tokenizer.fingerprint()},
        special=special,
        chat=read_chat_templates(directory.path),
        weights=partial(hugging_face_weights, directory, meta_model),
    )


def hugging_face_weights(directory: ModelDirectory, meta_model: nn.Module, kind: str) -> dict[str, Tensor]:
    """The weights in a directory in Hugging Face format, under the names of tinyllm.

    Raises:
        UserError: ``ema``; or a tensor is missing or does not fit the model.
    """
    if kind == "ema":
        hint = "auto or raw; a Hugging Face directory holds no average"
        raise UserError("the model has no averaged weights", key="weights", value=kind, hint=hint)
    return directory.weights(meta_model.state_dict())


def fill(model: nn.Module, weights: dict[str, Tensor], *, file: Path) -> None:
    """Load weights into a model; both must have the same tensors.

    Raises:
        UserError: names or shapes differ; the error names the first.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, model, file=file)
    model.load_state_dict(weights)


def with_special_ids(tokenizer: Tokenizer, special: dict[str, Any], *, adds_bos: bool) -> Tokenizer:
    """The tokenizer with the begin and end tokens of config.json; see :class:`SavedModel`."""
    bos, eos = (valid_ids(special.get(name), tokenizer) for name in ("bos_token_id", "eos_token_id"))
    if tokenizer.content != "text" or not (bos or eos):
        return tokenizer
    return tokenizer.used_by(bos_id=bos[0] if bos else None, adds_bos=adds_bos, eos_ids=eos)


def valid_ids(value: Any, tokenizer: Tokenizer) -> list[int]:
    """The ids in a config.json entry (a single id or a list), without those outside the vocabulary."""
    ids = value if isinstance(value, list) else [value]
    return [i for i in ids if type(i) is int and 0 <= i < tokenizer.vocab_size]
