"""Configurations that earlier versions saved, as they are written today."""

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.compose import compose

ADDED = (
    "model.layerdrop",
    "model.layers",
    "model.block.moe",
    *(f"model.block.attn.{key}" for key in ("head_dim", "window", "sinks", "softcap")),
    "trainer.activation_checkpointing",
    "loss.label_smoothing",
    "loss.z_loss",
    "ema",
    "trainer.compile",
    "trainer.profile",
    "curriculum",
    "checkpoint.asynchronous",
    "distributed",
)
"""What earlier checkpoints do not know."""


def upgraded(cfg: DictConfig) -> DictConfig:
    """A configuration that an earlier version saved, with what was added since at the values that change nothing.

    Today's come back as they are, and so does the model of a class of one's own.
    """
    missing = [key for key in ADDED if not _has(cfg, key)]
    if not missing:
        return cfg
    today = compose()
    ours = cfg.model.get("_target_") == today.model._target_
    filled = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(filled, DictConfig)
    with open_dict(filled):
        for key in missing:
            if ours or not key.startswith("model."):
                OmegaConf.update(filled, key, OmegaConf.select(today, key), force_add=True)
    return filled


def _has(cfg: DictConfig, key: str) -> bool:
    node, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, node) if node else cfg
    return parent is not None and name in parent
