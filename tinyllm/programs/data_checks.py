"""Checks of settings of data that need no data."""

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from tinyllm.errors import UserError

ROW_ORDER = frozenset({"dataset.packing", "dataset.group_by_length"})
"""Keys on how rows of training come together."""


def refuse_typed(cfg: DictConfig, keys: frozenset[str], typed: Collection[str], *, hint: str) -> None:
    """Refuse keys of the command line that a program does not read.

    Raises:
        UserError: naming the first.
    """
    for key in sorted(keys.intersection(typed)):
        raise UserError("the key has no effect here", key=key, value=OmegaConf.select(cfg, key), hint=hint)


def refuse_start_early(cfg: DictConfig) -> None:
    """Refuse ``dataset.start_early`` in a program that needs all data at once.

    Raises:
        UserError: it is set.
    """
    if cfg.dataset.get("start_early"):
        hint = "it is for training; leave it out"
        raise UserError("the key has no effect here", key="dataset.start_early", value=True, hint=hint)


def check_start_early(cfg: DictConfig, *, seq_len: int) -> None:
    """Refuse with ``dataset.start_early`` what a run cannot know before all its data are prepared.

    Raises:
        UserError: a setting that needs more than the first shard, or a shard shorter than a training window.
    """
    if not cfg.dataset.get("start_early"):
        return
    trainer, shard, packing = cfg.trainer, cfg.dataset.shard_tokens, cfg.dataset.packing
    if packing != "concat":
        hint = "with dataset.start_early=true the documents are not all there to be packed; use concat"
        raise UserError("the two cannot be combined", key="dataset.packing", value=packing, hint=hint)
    if shard <= seq_len:
        hint = f"at least {seq_len + 1}, a window of trainer.seq_len={seq_len} and the token after it"
        raise UserError("less than one training window", key="dataset.shard_tokens", value=shard, hint=hint)
    if trainer.max_epochs is not None:
        hint = "with dataset.start_early=true the number of tokens is not known yet; set max_steps or max_tokens"
        raise UserError("unknown horizon", key="trainer.max_epochs", value=trainer.max_epochs, hint=hint)
    if trainer.eval_train_tokens >= shard:
        hint = f"below dataset.shard_tokens={shard}: only the first shard is there from the start"
        raise UserError("out of range", key="trainer.eval_train_tokens", value=trainer.eval_train_tokens, hint=hint)
