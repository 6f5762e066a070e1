"""Sizes that follow from another one unless they are given."""

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.allowed import Option
from tinyllm.config.targets import annotations_of, resolve_target, type_problem
from tinyllm.config.typed import conformed
from tinyllm.errors import UserError

D_FF, D_FF_PER_D_MODEL = "model.d_ff", 4
"""Hidden units of a feed-forward layer for each of the width (Vaswani et al. 2017, §3.3)."""


def fill_sizes(cfg: DictConfig, allow: frozenset[Option]) -> None:
    """Replace a null of ``model.d_ff`` by 4 · ``model.d_model``, so that the number stands in whatever is saved.

    A model of one's own whose constructor takes None for it is left to itself.

    Args:
        cfg: a composed configuration, changed in place.
        allow: options besides those of ``conf/``.
    """
    model = None if "model" not in cfg or OmegaConf.is_missing(cfg, "model") else cfg.model
    if not isinstance(model, DictConfig) or model.get("d_ff", 0) is not None:
        return
    width = conformed(model.get("d_model"), int)
    if not isinstance(width, int) or isinstance(width, bool):
        return
    try:
        annotation = annotations_of(resolve_target(model, path="model", extra=allow)).get("d_ff")
    except UserError:  # the check says it better
        return
    if type_problem(None, annotation) is not None:
        with open_dict(cfg):
            model.d_ff = D_FF_PER_D_MODEL * width
