"""The models and batches of a coordinate check."""

from collections.abc import Collection
from copy import deepcopy
from itertools import chain, islice
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.data.batch import Batch
from tinyllm.data.loader import eval_batches
from tinyllm.errors import UserError
from tinyllm.programs.builders import PLACEHOLDER_VOCAB, build_model, build_optimizer, open_corpus, open_data
from tinyllm.training.batch_plan import plan_batch
from tinyllm.utils.nested import is_within

OWN = ("widths", "more_heads", "steps", "seeds", "growth", "shrinkage", "out")
"""Keys of the coordinate check itself."""
PARTS = ("attn", "ffn", "moe", "pos", "norm", "layers", "parametrization", "optimizer", "dataset", "tokenizer")
TRAINER = ("batch_size", "seq_len", "grad_clip", "device")
USED = ("model", "seed", "debug", "experiment", "hydra", *OWN, *PARTS, *(f"trainer.{name}" for name in TRAINER))
"""Keys and groups that have an effect, together with everything below them."""


def check_settings(cfg: DictConfig, typed: Collection[str]) -> None:
    """Check the widths, and refuse keys without an effect.

    Raises:
        UserError: a typed key has no effect, or there are fewer than two different widths.
    """
    for key in sorted(typed):
        if not is_within(key, USED) or key == "dataset.packing":
            hint = "a coordinate check takes a few steps at a constant rate and does not save a run; leave it out"
            raise UserError("the key has no effect here", file=key, hint=hint)
    widths = list(cfg.widths)
    if len(set(widths)) < max(2, len(widths)) or min(widths, default=0) < 1:
        hint = "at least two different widths, each at least 1"
        raise UserError("invalid widths", key="widths", value=widths, hint=hint)


def at_width(cfg: DictConfig, width: int) -> DictConfig:
    """The same composition at a different width; d_ff scales with it, and with ``more_heads`` so do the heads.

    Raises:
        UserError: the number of heads at this width is not an integer.
    """
    scaled, ratio = deepcopy(cfg), width / cfg.model.d_model
    scaled.model.d_model = width
    scaled.model.d_ff = max(1, round(cfg.model.d_ff * ratio))
    if not cfg.more_heads:
        return scaled
    for name in ("n_heads", "n_kv_heads"):
        if (cfg.model[name] * width) % cfg.model.d_model:
            hint = f"model.{name}={cfg.model[name]} at model.d_model={cfg.model.d_model} does not scale to an integer"
            raise UserError(f"{name} does not scale to this width", key="widths", value=width, hint=hint)
        scaled.model[name] = cfg.model[name] * width // cfg.model.d_model
    # base_heads=null means the model's own n_heads. Here they grow with the width, so the base model's must as well.
    parametrization = scaled.model.parametrization
    if parametrization.get("base_heads", 1) is None:
        base_heads = cfg.model.n_heads * parametrization.base_width / cfg.model.d_model
        parametrization.base_heads = max(1, round(base_heads))
    return scaled


class Models:
    """Builds a model and its optimizer for a width and a seed.

    All widths are tried on the meta device first, so that a wrong size is found before the data is opened.

    Raises:
        UserError: the sizes at a width do not fit together.
    """

    def __init__(self, cfg: DictConfig, invocation: Invocation) -> None:
        self._allow = invocation.allow
        self._configurations = {width: at_width(cfg, width) for width in cfg.widths}
        vocab_size, meta = cfg.model.vocab_size or PLACEHOLDER_VOCAB, torch.device("meta")
        for width in self._configurations:
            self.build(width, 0, vocab_size=vocab_size, device=meta)

    def build(
        self, width: int, seed: int, *, vocab_size: int, device: torch.device
    ) -> tuple[Any, torch.optim.Optimizer]:
        """A model with fresh weights, and its optimizer."""
        cfg = self._configurations[width]
        model = build_model(cfg, vocab_size=vocab_size, seed=seed, device=device, allow=self._allow)
        return model, build_optimizer(cfg, model, allow=self._allow)[0]


def open_batches(cfg: DictConfig, invocation: Invocation, *, device: torch.device) -> tuple[int, list[Batch]]:
    """Vocabulary size, and the first batches of the training split: one for each step and one to measure on.

    Raises:
        UserError: the training split is too small.
    """
    trainer = cfg.trainer
    shape = plan_batch(
        batch_size=trainer.batch_size,
        grad_accum_steps=None,
        total_batch_tokens=None,
        seq_len=trainer.seq_len,
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    data = open_data(*open_corpus(cfg, allow=invocation.allow), lines=not invocation.json)
    streams = [
        eval_batches(split, seq_len=shape.seq_len, batch_size=shape.batch_size)
        for split in data.splits("train").values()
    ]
    in_turn = chain.from_iterable(zip(*streams, strict=False))  # a batch of each source of a mixture
    batches = [batch.to(device) for batch in islice(in_turn, cfg.steps + 1)]
    if len(batches) <= cfg.steps or batches[-1].sequences < shape.batch_size:
        needed = (cfg.steps + 1) * shape.batch_size * shape.seq_len
        hint = f"the training split has fewer than the {needed} that are needed"
        raise UserError("too few tokens", key="steps", value=cfg.steps, hint=hint)
    return data.tokenizer.vocab_size, batches
