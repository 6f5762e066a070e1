"""``init_from``: the weights of an earlier run as the start of this one, refused where they do not fit."""

from omegaconf import DictConfig

from tinyllm.config.saved import saved_config
from tinyllm.config.targets import Option
from tinyllm.data.run_data import RunData
from tinyllm.errors import UserError
from tinyllm.models.parametrization import multipliers
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import META, build_model, plain
from tinyllm.runs.checkpoint import Checkpoint, check_fits
from tinyllm.runs.layout import CONFIG, TOKENIZER


def check_initial_weights(
    source: Checkpoint, meta_model: Transformer, data: RunData, *, cfg: DictConfig, allow: frozenset[Option]
) -> None:
    """Refuse an ``init_from`` with a different tokenizer, architecture or parametrization.

    Raises:
        UserError: its weights do not fit this run.
    """
    saved, current = source.manifest["data"]["tokenizer"], data.tokenizer.fingerprint()
    if saved != current:
        raise UserError(
            "the run in init_from used a different tokenizer",
            key="init_from",
            value=cfg.init_from,
            hint=f"its fingerprint is {saved[:12]}, this run's {current[:12]};"
            f" use tokenizer=pretrained tokenizer.path={source.path / TOKENIZER}",
        )
    check_fits(source, meta_model)
    check_multipliers(source, meta_model, cfg=cfg, vocab_size=data.tokenizer.vocab_size, allow=allow)


def check_multipliers(
    source: Checkpoint, meta_model: Transformer, *, cfg: DictConfig, vocab_size: int, allow: frozenset[Option]
) -> None:
    """Refuse weights whose parametrization multiplies logits or attention scores by different factors.

    The tensors would fit, but the model would compute a different function from the one that was trained.

    Raises:
        UserError: the factors differ.
    """
    source_cfg = saved_config(source.path / CONFIG, allow=allow)
    source_node, node = source_cfg.model.get("parametrization"), cfg.model.get("parametrization")
    if source_node is None or node is None or source_node == node:  # runs of the first versions have no such key
        return
    source_model = build_model(source_cfg, vocab_size=vocab_size, seed=0, device=META, allow=allow)
    if multipliers(source_model) != multipliers(meta_model):
        hint = f"that run has {_shown(source_node)}, this one {_shown(node)}"
        raise UserError(
            "its weights were trained with different parametrization multipliers",
            key="init_from",
            value=cfg.init_from,
            hint=hint,
        )


def _shown(node: DictConfig) -> str:
    """A node with a ``_target_`` as ``Class(key=value, …)``."""
    keys = ", ".join(f"{key}={value}" for key, value in plain(node).items() if key != "_target_")
    return f"{str(node._target_).rpartition('.')[2]}({keys})"
