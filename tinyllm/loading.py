"""A trained model out of a run directory."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tinyllm.assemble import build_model
from tinyllm.config.files import read_yaml
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.training.checkpoint import CONFIG, TOKENIZER, Checkpoint, find, load_weights


def load(
    run: str | Path,
    *,
    checkpoint: str = "best",
    weights: str = "auto",
    device: str | torch.device = "cpu",
    allow: frozenset[str] = frozenset(),
    tell: Callable[[str], None] = warnings.warn,
) -> tuple[Any, Tokenizer]:
    """The model of a run with its trained weights, in evaluation mode, and its tokenizer.

    Args:
        run: a run directory or one of its checkpoints.
        checkpoint: ``best`` (the newest where none was evaluated), ``last``, or a checkpoint directory.
        weights: ``auto`` or ``raw``: as the optimizer left them.
        allow: classes beside tinyllm's own that the run's configuration may name.
        tell: called with a sentence when a damaged checkpoint is passed over.

    Raises:
        UserError: no whole checkpoint, a class that is not allowed, weights that do not fit or are not there.
    """
    found = find(run, prefer=checkpoint, tell=tell)
    if weights == "ema":
        raise UserError("the run has no averaged weights", key="weights", value=weights, hint="auto or raw")
    tokenizer = load_tokenizer(found.path / TOKENIZER)
    model: nn.Module = build_model(
        config_of(found), vocab_size=tokenizer.vocab_size, seed=0, device=torch.device(device), allow=allow
    )
    load_weights(found, model)
    return model.eval(), tokenizer


def config_of(checkpoint: Checkpoint) -> DictConfig:
    """The resolved configuration that a checkpoint was trained with.

    Raises:
        UserError: it cannot be read.
    """
    file = checkpoint.path / CONFIG
    cfg = OmegaConf.create(read_yaml(file, what="checkpoint damaged"))
    if not isinstance(cfg, DictConfig):
        raise UserError("checkpoint damaged", file=file, hint="it holds no configuration")
    return cfg
