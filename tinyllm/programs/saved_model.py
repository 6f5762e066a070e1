"""A model on disk that is not loaded yet, and how one in Hugging Face format is opened."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from tinyllm.config.compose import compose
from tinyllm.config.grammar import quote
from tinyllm.errors import UserError
from tinyllm.interop.architecture import architecture_of, settings_of
from tinyllm.interop.directory import CONFIG as HF_CONFIG
from tinyllm.interop.directory import ModelDirectory
from tinyllm.interop.tokenizer import adds_bos, read_chat_templates
from tinyllm.interop.tokenizer import read as read_tokenizer
from tinyllm.programs.builders import META, build_model
from tinyllm.runs.layout import TOKENIZER
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.ids import IdsTokenizer


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
        chat: chat templates by file name: of a run on conversations, or of a Hugging Face model.
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
    settings = settings_of(directory.arch) + (["objective=reward"] if directory.scores_answers else [])
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
