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
)
"""What the first checkpoints did not know: mixtures, windows, layers that differ, an average, recompute."""


def upgraded(cfg: DictConfig) -> DictConfig:
    """A configuration that the first version saved, with what was added since at the values that change nothing.

    Later ones, and those of a model class of one's own, come back as they are.
    """
    if "layers" in cfg.model:
        return cfg
    today = compose()
    if cfg.model.get("_target_") != today.model._target_:
        return cfg
    filled = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(filled, DictConfig)
    with open_dict(filled):
        for key in ADDED:
            OmegaConf.update(filled, key, OmegaConf.select(today, key), force_add=True)
    return filled
