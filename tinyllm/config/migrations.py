"""Configurations that earlier versions saved, as they are written today."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.compose import compose
from tinyllm.utils.nested import has_key

FIRST = (
    "model.layerdrop",
    "model.layers",
    "model.block.moe",
    *(f"model.block.attn.{key}" for key in ("head_dim", "window", "sinks", "softcap")),
)
"""What the model of the first version did not have; it had no ``model.layers``."""
MODEL = ("model.parametrization",)
"""What the model of later versions did not have."""
LATER = (
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.profile",
    "trainer.sample",
    "loss.label_smoothing",
    "loss.z_loss",
    "ema",
    "curriculum",
    "checkpoint.enabled",
    "checkpoint.asynchronous",
    "distributed",
)
"""What earlier versions do not know of training."""
ORTHOGONAL_HEAD = "optimizer.orthogonal_head"
"""Earlier versions had no such key, and the head, where there was one, was Muon's."""

BPE = "tinyllm.tokenizers.bpe.BPETrainer"
MUON = "tinyllm.optim.muon.Muon"
HEADS: dict[str, Any] = {"qk_norm_eps": None, "qkv_bias": None, "nope": False}
ROUTED: dict[str, Any] = {"normalize": None, "n_groups": 1, "n_active_groups": None}
PARTS: dict[str, dict[str, Any]] = {
    "tinyllm.nn.attention.mha.MHA": HEADS,
    "tinyllm.nn.attention.mha.GQA": HEADS,
    "tinyllm.nn.attention.mha.MQA": HEADS,
    "tinyllm.nn.moe.AuxLoss": ROUTED,
    "tinyllm.nn.moe.AuxFree": ROUTED,
    "tinyllm.tokenizers.char.CharTrainer": {"special_tokens": [], "match_special": False},
    "tinyllm.tokenizers.byte.ByteTrainer": {"special_tokens": [], "match_special": False},
    BPE: {"match_special": False},
    "tinyllm.tokenizers.pretrained.PretrainedTrainer": {"match_special": False},
}
"""What parts did not have, by class, at the values that change nothing; wherever in a configuration they stand."""


MOVED = {
    "tinyllm.training.distributed.SingleProcess": "tinyllm.training.distributed.strategy.SingleProcess",
    "tinyllm.training.distributed.auto": "tinyllm.training.distributed.auto.auto",
    "tinyllm.training.distributed.strategy.auto": "tinyllm.training.distributed.auto.auto",
    "tinyllm.training.ddp.DDP": "tinyllm.training.distributed.ddp.DDP",
    "tinyllm.training.fsdp.FSDP": "tinyllm.training.distributed.fsdp.FSDP",
    "tinyllm.nn.attention.gqa.GQA": "tinyllm.nn.attention.mha.GQA",
    "tinyllm.nn.attention.mqa.MQA": "tinyllm.nn.attention.mha.MQA",
}
"""Where the classes lie today that earlier versions named in the ``config.yaml`` of a run."""


def renamed(content: Any) -> Any:
    """A saved configuration as plain containers, with today's names of the classes that have moved since."""
    if isinstance(content, dict):
        return {
            key: MOVED.get(child, child) if key == "_target_" and isinstance(child, str) else renamed(child)
            for key, child in content.items()
        }
    return [renamed(child) for child in content] if isinstance(content, list) else content


def upgraded(cfg: DictConfig) -> DictConfig:
    """A configuration that an earlier version saved, with what was added since at the values that change nothing.

    Today's come back as they are, and so does the model of a class of one's own.
    """
    then = as_it_was(partial(OmegaConf.select, cfg))
    missing = [key for key in LATER if not has_key(cfg, key)]
    if missing or not all(has_key(cfg, key) for key in MODEL):
        today = compose()
        if cfg.model.get("_target_") == today.model._target_:
            missing += FIRST if "layers" not in cfg.model else ()
            missing += [key for key in MODEL if not has_key(cfg, key)]
    then |= dict(_of_parts(OmegaConf.to_container(cfg), ""))
    if not missing and not then:
        return cfg
    filled = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(filled, DictConfig)
    with open_dict(filled):
        for key in missing:
            OmegaConf.update(filled, key, OmegaConf.select(today, key), force_add=True)
        for key, value in then.items():
            OmegaConf.update(filled, key, value, force_add=True)
    return filled


def as_it_was(saved: Callable[[str], Any]) -> dict[str, Any]:
    """What an earlier version did where it had no key and today's default is something else, by key.

    Args:
        saved: of a key: its value in the configuration that the earlier version saved, None where it has none.
    """
    then: dict[str, Any] = {}
    if saved("optimizer._target_") == MUON and saved(ORTHOGONAL_HEAD) is None:
        then[ORTHOGONAL_HEAD] = saved("model.tie_embeddings") is False
    if saved("tokenizer._target_") == BPE and saved("tokenizer.max_word") is None:
        then["tokenizer.max_word"] = None
    return then


def _of_parts(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Keys that a part's class did not have when it was saved, each with its value."""
    if isinstance(node, list):
        for place, child in enumerate(node):
            yield from _of_parts(child, f"{path}[{place}]")
    elif isinstance(node, dict):
        before = f"{path}." if path else ""
        for key, value in PARTS.get(str(node.get("_target_")), {}).items():
            if key not in node:
                yield f"{before}{key}", value
        for key, child in node.items():
            yield from _of_parts(child, f"{before}{key}")
