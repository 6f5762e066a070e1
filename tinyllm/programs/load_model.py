"""A trained model out of a run directory, or out of a directory of Hugging Face."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
from tinyllm.models.parametrization import multipliers
from tinyllm.programs.builders import build_model, plain
from tinyllm.runs.checkpoint import Checkpoint, check_shapes, find
from tinyllm.runs.layout import CONFIG, TOKENIZER
from tinyllm.runs.state_schema import read_checked
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.utils.memory import memory_for


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A model on the disk: a checkpoint of ours, or a directory of Hugging Face.

    Attributes:
        path: the checkpoint or the directory.
        cfg: the configuration, resolved.
        settings: the overrides that compose it; empty for a checkpoint.
        step: optimizer steps it was trained for here.
        data: fingerprints of what it was trained on; without those of splits for a model from elsewhere.
        special: ids of special tokens as config.json has them; empty for a model that was trained here.
        chat: chat templates of a model from elsewhere, by the name of their file.
        weights: the tensors by name; ``raw``, ``ema`` or ``auto``, see :func:`load`.
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
        run: a run directory, one of its checkpoints, or a directory of Hugging Face (config.json and safetensors).
        checkpoint: ``best`` (the newest where none was evaluated), ``last``, or a checkpoint directory.
        weights: ``raw``: as the optimizer left them; ``ema``: their moving average; ``auto``: that, if the run has one.
        allow: option files of one's own, whose classes the run's configuration may name in their places:
            ``tinyllm.config.targets.options_of(Path("my_conf"))``.
        tell: called with a sentence when a damaged checkpoint is passed over.

    Raises:
        UserError: no complete checkpoint, a class that is not allowed, weights that do not fit or are not there, a
        directory of Hugging Face that tinyllm cannot express.
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
    model: nn.Module = sketch(saved, device=torch.device(device), allow=allow)
    with memory_for(f"the weights of {saved.path}", hint="the model and a copy of its weights have to fit"):
        fill(model, saved.weights(weights), file=saved.path)
    return model.eval()


def sketch(
    saved: SavedModel,
    *,
    device: torch.device = torch.device("meta"),  # noqa: B008 - a constant
    allow: frozenset[Option] = frozenset(),
) -> Any:
    """A saved model without its weights.

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
    """The model that a person means by a directory; its weights are not read yet; see :func:`load`.

    Raises:
        UserError: no complete checkpoint, or a directory of Hugging Face that tinyllm cannot express.
    """
    if is_model(run):
        if checkpoint not in ("best", "last"):
            hint = f"{run} is no run of tinyllm and holds one model; leave it out"
            raise UserError("no checkpoints there", key="checkpoint", value=checkpoint, hint=hint)
        return open_hugging_face(run, tell=tell)
    found = find(run, prefer=checkpoint, tell=tell)
    found.require("data.tokenizer")
    cfg = config_of(found, allow=allow)
    tokenizer, imported = load_tokenizer(found.path / TOKENIZER), found.manifest.get("imported", {})
    special = imported.get("special", {})
    if special:
        adds = imported.get("adds_bos", adds_bos(tokenizer, special.get("bos_token_id")))  # earlier imports do not say
        tokenizer = used_by(tokenizer, special, adds_bos=adds)
    return SavedModel(
        path=found.path,
        cfg=cfg,
        settings=[],
        tokenizer=tokenizer,
        step=found.step,
        data=found.manifest["data"],
        special=special,
        chat=found.manifest.get("imported", {}).get("chat", {}),
        weights=lambda which: _weights(found, cfg, which),
    )


def _weights(found: Checkpoint, cfg: DictConfig, which: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, or what else was kept of them."""
    averaged = cfg.get("ema", {}).get("enabled") and which != "raw"
    shadow = read_checked(found).get("average", {}).get("shadow", {}) if averaged else {}
    if which == "ema" and not shadow:
        raise UserError("the run has no averaged weights", key="weights", value=which, hint="auto or raw")
    return found.weights() | shadow


def open_hugging_face(
    path: str | Path, *, tokenizer_file: Path | None = None, tell: Callable[[str], None] = warnings.warn
) -> SavedModel:
    """The model in a directory of Hugging Face; its weights are not read yet.

    Args:
        tokenizer_file: where the configuration is to find the tokenizer; None: where it is.
        tell: called with a sentence about what a person should know.

    Raises:
        UserError: it is none, or tinyllm cannot express it; the line names the entry of config.json.
    """
    directory = ModelDirectory(path)
    n_words = directory.arch.value("model.vocab_size")
    tokenizer = read_tokenizer(directory.path, vocab_size=n_words, tell=tell)
    special = directory.special()
    tokenizer = used_by(tokenizer, special, adds_bos=adds_bos(tokenizer, special["bos_token_id"], directory.path))
    settings = settings_of(directory.arch)
    if isinstance(tokenizer, IdsTokenizer):
        settings += ["tokenizer=ids", f"tokenizer.vocab_size={n_words}"]
    else:
        file = tokenizer_file or (directory.path / TOKENIZER).absolute()
        settings += ["tokenizer=pretrained", f"tokenizer.path={quote(str(file))}"]
    cfg = compose(*settings)
    try:
        meta = build_model(cfg, vocab_size=tokenizer.vocab_size, seed=0, device=torch.device("meta"), allow=frozenset())
    except RuntimeError as error:  # a size that overflows
        raise UserError("sizes that no machine holds", file=directory.path / HF_CONFIG, hint=str(error)) from error
    assert architecture_of(meta) == directory.arch, "the settings do not say what config.json does"

    def weights(which: str) -> dict[str, Tensor]:
        if which == "ema":
            hint = "auto or raw; a directory of Hugging Face has none"
            raise UserError("no averaged weights there", key="weights", value=which, hint=hint)
        return directory.weights(meta.state_dict())

    return SavedModel(
        path=directory.path,
        cfg=cfg,
        settings=settings,
        tokenizer=tokenizer,
        step=0,
        data={"tokenizer": tokenizer.fingerprint()},
        special=special,
        chat=read_chat_templates(directory.path),
        weights=weights,
    )


def fill(model: nn.Module, weights: dict[str, Tensor], *, file: Path) -> None:
    """Load weights into a model, every tensor of both.

    Raises:
        UserError: names or shapes differ; the line names the first that does.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, model, file=file)
    model.load_state_dict(weights)


def used_by(tokenizer: Tokenizer, special: dict[str, Any], *, adds_bos: bool) -> Tokenizer:
    """The tokenizer with what begins and ends a text in the eyes of a model from elsewhere; see :class:`SavedModel`."""
    bos, eos = (
        [i for i in _listed(special.get(name)) if type(i) is int and 0 <= i < tokenizer.vocab_size]
        for name in ("bos_token_id", "eos_token_id")
    )
    if tokenizer.content != "text" or not (bos or eos):
        return tokenizer
    return tokenizer.used_by(bos_id=bos[0] if bos else None, adds_bos=adds_bos, eos_ids=eos)


def _listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


def config_of(checkpoint: Checkpoint, *, allow: frozenset[Option] = frozenset()) -> DictConfig:
    """The resolved configuration that a checkpoint was trained with; see :func:`tinyllm.config.saved.saved_config`."""
    return saved_config(checkpoint.path / CONFIG, allow=allow)


def check_multipliers(
    checkpoint: Checkpoint, model: nn.Module, *, cfg: DictConfig, vocab_size: int, allow: frozenset[Option]
) -> None:
    """Refuse weights that another parametrization would read as another function.

    Args:
        checkpoint: what ``init_from`` names.
        model: what its weights are to start; meta tensors suffice.
        cfg: of that model.

    Raises:
        UserError: the factors on logits or scores differ.
    """
    was = config_of(checkpoint, allow=allow)
    theirs, ours = was.model.get("parametrization"), cfg.model.get("parametrization")
    if theirs is None or ours is None or theirs == ours:
        return
    other = build_model(was, vocab_size=vocab_size, seed=0, device=torch.device("meta"), allow=allow)
    if multipliers(other) != multipliers(model):
        hint = f"that run has {_shown(theirs)}, this one {_shown(ours)}"
        raise UserError("its weights belong to other multipliers", key="init_from", value=cfg.init_from, hint=hint)


def _shown(node: DictConfig) -> str:
    """A node with a ``_target_``, in few words."""
    keys = ", ".join(f"{key}={value}" for key, value in plain(node).items() if key != "_target_")
    return f"{str(node._target_).rpartition('.')[2]}({keys})"
