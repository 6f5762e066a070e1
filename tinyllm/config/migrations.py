"""Upgrade configurations that earlier versions saved."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.compose import Composition, compose
from tinyllm.config.grammar import key_of
from tinyllm.config.horizons import DEFAULT_STEPS, HORIZON
from tinyllm.config.option_files import conf_dir
from tinyllm.config.renames import NEXT_TOKEN
from tinyllm.config.schema import register
from tinyllm.utils.nested import has_key
from tinyllm.utils.yaml_files import read_yaml

FIRST = (
    "model.layerdrop",
    "model.layers",
    "model.block.moe",
    *(f"model.block.attn.{key}" for key in ("head_dim", "window", "sinks", "softcap")),
)
"""Model keys that the first version lacked. A configuration of that version has no ``model.layers``."""
MODEL = ("model.parametrization", "model.short_conv", "model.document_mask")
"""Model keys that later versions lacked."""
LATER = (
    "chat_template",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.profile",
    "trainer.sample",
    "objective",
    "tools",
    "ema",
    "curriculum",
    "checkpoint.enabled",
    "checkpoint.asynchronous",
    "distributed",
    "lora",
)
"""Training keys that earlier versions lacked."""
DEFAULTS_CHANGED = {"optimizer"}
"""Groups whose default is a different option than in earlier versions."""
ORTHOGONAL_HEAD = "optimizer.orthogonal_head"
"""Earlier versions did not have this key; Muon then trained an untied head."""

BPE = "tinyllm.tokenizers.bpe.BPETrainer"
MUON = "tinyllm.optim.muon.Muon"
HEADS: dict[str, Any] = {"qk_norm_eps": None, "qkv_bias": None, "nope": False}
SELECTION: dict[str, Any] = {
    "clean": False,
    "normalize": "none",
    "dedup": False,
    "max_documents": None,
    "max_tokens": None,
}
PACKING: dict[str, Any] = {"packing": "concat"}
LARGE = PACKING | {"start_early": False, "shard_tokens": 2**26}
OF_HUB: dict[str, Any] = {"name": None, "config": None, "revision": None, "split": "train", "val_split": None}
ROUTED: dict[str, Any] = {"normalize": None, "n_groups": 1, "n_active_groups": None}
PARTS: dict[str, dict[str, Any]] = {
    "tinyllm.nn.attention.mha.MHA": HEADS,
    "tinyllm.nn.attention.mha.GQA": HEADS,
    "tinyllm.nn.attention.mha.MQA": HEADS,
    "tinyllm.nn.moe.AuxLoss": ROUTED,
    "tinyllm.nn.moe.AuxFree": ROUTED,
    "tinyllm.data.text.TextCorpus": SELECTION | LARGE,
    "tinyllm.data.jsonl.JsonlCorpus": SELECTION | LARGE,
    "tinyllm.data.bin.BinCorpus": PACKING,
    "tinyllm.data.hub.corpus.HubCorpus": LARGE,
    "tinyllm.data.hub.corpus.WikitextCorpus": LARGE,
    "tinyllm.data.parquet.ParquetCorpus": LARGE,
    "tinyllm.data.pydocs.PydocsCorpus": PACKING,
    "tinyllm.data.stdlib.StdlibCorpus": PACKING,
    "tinyllm.data.chat.corpus.ConversationCorpus": {"group_by_length": True},
    "tinyllm.data.preferences.corpus.PreferenceCorpus": OF_HUB,
    "tinyllm.data.prompt_data.PromptCorpus": OF_HUB,
    "tinyllm.data.tasks.corpus.TaskCorpus": {"group_by_length": True},
    "tinyllm.tokenizers.char.CharTrainer": {"special_tokens": [], "match_special": False},
    "tinyllm.tokenizers.byte.ByteTrainer": {"special_tokens": [], "match_special": False},
    BPE: {"match_special": False},
    "tinyllm.tokenizers.pretrained.PretrainedTrainer": {"match_special": False, "special_tokens": []},
    MUON: {"normalize_neurons": False},
    NEXT_TOKEN: {"label_smoothing": 0.0, "z_loss": 0.0},
}
"""By class: keys that earlier versions lacked, wherever they occur, with values that reproduce the old behavior."""


def upgraded(cfg: DictConfig) -> DictConfig:
    """Add the keys that a saved configuration lacks, with values that reproduce the old behavior.

    Current configurations are returned unchanged. A model of a user's own class is left unchanged.
    """
    defaults = legacy_defaults(partial(OmegaConf.select, cfg))
    missing = [key for key in LATER if not has_key(cfg, key)]
    if missing or not all(has_key(cfg, key) for key in MODEL):
        today = compose()
        if cfg.model.get("_target_") == today.model._target_:
            missing += FIRST if "layers" not in cfg.model else ()
            missing += [key for key in MODEL if not has_key(cfg, key)]
    defaults |= dict(_of_parts(OmegaConf.to_container(cfg), ""))
    if not missing and not defaults:
        return cfg
    filled = OmegaConf.create(OmegaConf.to_container(cfg))
    assert isinstance(filled, DictConfig)
    with open_dict(filled):
        for key in missing:
            OmegaConf.update(filled, key, OmegaConf.select(today, key), force_add=True)
        for key, value in defaults.items():
            OmegaConf.update(filled, key, value, force_add=True)
    return filled


def legacy_defaults(saved: Callable[[str], Any]) -> dict[str, Any]:
    """Values that reproduce the old behavior, for keys that are missing and whose default has changed since.

    Args:
        saved: returns the value of a key in the saved configuration; None if it has no such key.
    """
    defaults: dict[str, Any] = {}
    if saved("optimizer._target_") == MUON and saved(ORTHOGONAL_HEAD) is None:
        defaults[ORTHOGONAL_HEAD] = saved("model.tie_embeddings") is False
    if saved("trainer.batch_size") is not None and all(saved(key) is None for key in HORIZON):
        defaults[HORIZON[0]] = DEFAULT_STEPS
    if saved("tokenizer._target_") == BPE and saved("tokenizer.max_word") is None:
        defaults["tokenizer.max_word"] = None
    if saved("trainer.batch_size") is not None and saved("trainer.kernels") is None:
        defaults["trainer.kernels"] = False
    return defaults


def former_choices(settings: Iterable[str], saved: Callable[[str], Any]) -> list[str]:
    """The options, as ``group=option``, that a run had by default where another option is the default today.

    Args:
        settings: the settings that the run saved, in Hydra's grammar, literal values quoted.
        saved: returns the value of a key in the saved configuration; None if it has no such key.
    """
    settings = list(settings)
    named = set(map(key_of, settings))
    former = {}
    for group in DEFAULTS_CHANGED - named:
        target = saved(f"{group}._target_")
        options = {file.stem: read_yaml(file, of=dict) for file in sorted((conf_dir() / group).glob("*.yaml"))}
        having = [name for name, content in options.items() if content.get("_target_") == target]
        if having:
            former[group] = having[0]
    if not former:
        return []
    # The experiment of the run may choose an option, too. Composed without checks: it may leave values to the user.
    experiment = [setting for setting in settings if key_of(setting) == "experiment"]
    register()
    today = Composition(program="train", overrides=experiment).compose(experiment, keep_hydra=False)
    return [
        f"{group}={name}"
        for group, name in sorted(former.items())
        if OmegaConf.select(today, f"{group}._target_") != saved(f"{group}._target_")
    ]


def _of_parts(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The keys of ``PARTS`` that a saved configuration lacks, with their values."""
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
