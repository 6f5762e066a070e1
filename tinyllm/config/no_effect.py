"""Keys that the value of a different key disables. Setting such a key is an error instead of being ignored."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tinyllm.config.targets import Option, resolve_target, walk_nodes
from tinyllm.errors import UserError, setting
from tinyllm.utils.nested import value_at
from tinyllm.utils.signatures import parameters_of


@dataclass(frozen=True, kw_only=True)
class DisabledBy:
    """Keys that have no effect while ``key`` has a certain value."""

    key: str
    """The key that disables them."""
    when: Callable[[Any], bool]
    """Whether a value of ``key`` disables them."""
    disables: tuple[str, ...]


def is_set(value: Any) -> bool:
    """Whether a value is set."""
    return value is not None


def is_zero(value: Any) -> bool:
    """Whether a number is 0, which turns a feature off."""
    return bool(value == 0)


def is_run_path(value: Any) -> bool:
    """Whether ``resume`` names a run. ``auto`` may find no run, and every job of a sweep has it."""
    return value not in (None, "auto")


def is_false(value: Any) -> bool:
    """Whether a switch is false."""
    return value is False


FILTERS = ("top_k", "top_p", "min_p")
SAMPLE = tuple(f"trainer.sample.{key}" for key in ("temperature", *FILTERS, "repetition_penalty"))

RULES = (
    DisabledBy(
        key="dataloader.workers",
        when=is_zero,
        disables=("dataloader.prefetch_factor", "dataloader.persistent_workers"),
    ),
    DisabledBy(key="ema.enabled", when=is_false, disables=("ema.decay", "ema.update_every", "ema.start_step")),
    DisabledBy(key="curriculum.enabled", when=is_false, disables=("curriculum.start_seq_len", "curriculum.steps")),
    DisabledBy(
        key="trainer.compile.enabled",
        when=is_false,
        disables=tuple(f"trainer.compile.{key}" for key in ("backend", "mode", "fullgraph", "dynamic", "fallback")),
    ),
    DisabledBy(key="trainer.compile.enabled", when=lambda value: value is True, disables=("trainer.kernels",)),
    DisabledBy(
        key="trainer.compile.backend", when=lambda value: bool(value != "inductor"), disables=("trainer.compile.mode",)
    ),
    DisabledBy(
        key="checkpoint.enabled",
        when=is_false,
        disables=("checkpoint.keep", "checkpoint.asynchronous", "trainer.checkpoint_every"),
    ),
    DisabledBy(key="trainer.profile.steps", when=is_zero, disables=("trainer.profile.memory",)),
    DisabledBy(
        key="trainer.sample_every", when=is_zero, disables=("trainer.sample_prompt", "trainer.sample_tokens", *SAMPLE)
    ),
    DisabledBy(key="trainer.eval_every", when=is_zero, disables=("trainer.eval_tokens", "trainer.eval_train_tokens")),
    DisabledBy(
        key="trainer.nonfinite.action",
        when=lambda value: bool(value == "stop"),
        disables=("trainer.nonfinite.patience",),
    ),
    DisabledBy(key="model.tie_embeddings", when=lambda value: value is True, disables=("optimizer.orthogonal_head",)),
    DisabledBy(key="conversations", when=is_set, disables=("vs",)),
    DisabledBy(key="run.dir", when=is_set, disables=("run.name",)),
    DisabledBy(key="stats", when=is_false, disables=("picture",)),
    DisabledBy(
        key="dataset.packing", when=lambda value: bool(value == "best_fit"), disables=("dataset.group_by_length",)
    ),
    DisabledBy(key="dataset.start_early", when=is_false, disables=("dataset.shard_tokens",)),
    DisabledBy(key="dataset.val_path", when=is_set, disables=("dataset.val_fraction",)),
    DisabledBy(key="dataset.path", when=is_set, disables=("dataset.name", "dataset.revision", "dataset.streaming")),
    DisabledBy(key="dataset.path", when=is_set, disables=("dataset.url",)),
    DisabledBy(key="dataset.val_split", when=is_set, disables=("dataset.val_fraction",)),
    DisabledBy(key="model.block.attn.window", when=is_zero, disables=("model.block.attn.sinks",)),
    DisabledBy(key="model.block.attn.qk_norm", when=is_false, disables=("model.block.attn.qk_norm_eps",)),
    DisabledBy(
        key="model.block.moe.n_groups",
        when=lambda value: bool(value == 1),
        disables=("model.block.moe.n_active_groups",),
    ),
    DisabledBy(
        key="model.block.moe.n_active_groups", when=lambda value: value is None, disables=("model.block.moe.n_groups",)
    ),
    DisabledBy(key="model.block.ffn.d_ff", when=is_set, disables=("model.d_ff",)),
    DisabledBy(key="model.block.moe.expert_d_ff", when=is_set, disables=("model.block.ffn.d_ff", "model.d_ff")),
    DisabledBy(key="resume", when=is_run_path, disables=("init_from",)),
    DisabledBy(key="temperature", when=is_zero, disables=FILTERS),
    DisabledBy(
        key="trainer.sample.temperature", when=is_zero, disables=tuple(f"trainer.sample.{key}" for key in FILTERS)
    ),
)

TEMPLATE = "chat_template"
"""The group of chat templates, and the argument by which a data set takes one."""
BLOCK = "model.block"
PASSED_DOWN = {
    "model.n_kv_heads": {"n_kv_heads"},
    "model.attn_dropout": {"attn_dropout"},
    "model.d_ff": {"d_ff", "model_d_ff"},
}
"""Model keys whose values are passed to the layers, with the constructor parameters that take them. A layer without
such a parameter ignores the value."""


def check_effects(
    plain: dict[str, Any], *, named: Iterable[str], set_by_program: Collection[str] = (), allow: frozenset[Option]
) -> None:
    """Refuse a key that the user set and that cannot take effect.

    Args:
        plain: the composed configuration as plain containers.
        named: keys of the command line and of the experiment.
        set_by_program: keys set by the program; they never disable another key.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: a key has no effect; the message names what turns it off.
    """
    named = set(named)
    blocks = _blocks(plain)
    # A key of the block is disabled only if every kind of layer disables it: evaluate the rules once per kind of block.
    views = [plain | {"model": plain["model"] | block | {"block": block}} for block in blocks] or [plain]
    for rule in RULES:
        without_effect = sorted(named.intersection(rule.disables))
        if not without_effect or rule.key in set_by_program:
            continue
        if all(rule.when(value_at(view, rule.key)) for view in views):
            key = without_effect[0]
            hint = f"{setting(rule.key, value_at(views[0], rule.key))} turns it off; leave one of the two out"
            raise UserError("the key has no effect here", key=key, value=value_at(plain, key), hint=hint)
    if blocks:
        _check_passed_down(plain, named, blocks, allow)
    _check_chat_template(plain, named, allow)


def _check_chat_template(plain: dict[str, Any], named: set[str], allow: frozenset[Option]) -> None:
    """Refuse a chat template for data without conversations.

    Raises:
        UserError: it has no effect.
    """
    keys = sorted(key for key in named if key.partition(".")[0] == TEMPLATE)
    dataset = plain.get("dataset")
    if plain.get("conversations"):  # describe renders a file of its own
        return
    if not keys or not isinstance(dataset, dict) or "_target_" not in dataset:
        return
    if not takes_template(dataset, allow=allow):
        hint = "the data are no conversations; leave it out, or choose dataset=chat"
        value = value_at(plain, keys[0])
        raise UserError("the key has no effect here", key=keys[0], value=_shown(value), hint=hint)


def takes_template(dataset: dict[str, Any], *, allow: frozenset[Option]) -> bool:
    """Whether a data set, or a source of a mixture, is rendered by a chat template."""
    sources = dataset.get("sources")
    nodes = sources.values() if isinstance(sources, dict) else [dataset]
    targets = [resolve_target(node, path="dataset", extra=allow) for node in nodes if isinstance(node, dict)]
    return any(TEMPLATE in (parameters_of(target) or ()) for target in targets)


def _shown(value: Any) -> Any:
    """A value as the user typed it; of a group, the class it chooses."""
    return value["_target_"].rpartition(".")[2] if isinstance(value, dict) else value


def _blocks(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The block node of each kind of layer."""
    kinds = value_at(plain, "model.layers.kinds")
    blocks = list(kinds.values()) if isinstance(kinds, dict) else [value_at(plain, "model.block")]
    return [block for block in blocks if isinstance(block, dict)]


def _check_passed_down(plain: dict[str, Any], named: set[str], blocks: list[Any], allow: frozenset[Option]) -> None:
    """Refuse a value that is passed to the layers and that no layer takes."""
    nodes = [
        (path, node)
        for block in blocks
        for name, child in block.items()
        for path, node in walk_nodes(child, f"{BLOCK}.{name}")
    ]
    layers = list(dict.fromkeys(resolve_target(node, path=path, extra=allow) for path, node in nodes))
    for key in sorted(named.intersection(PASSED_DOWN)):
        if not any(_reads(layer, PASSED_DOWN[key]) for layer in layers):
            names = ", ".join(layer.__name__ for layer in layers)
            hint = (
                f"not used by {names}; leave it out, or choose an option that uses it (e.g. attn=gqa uses n_kv_heads)"
            )
            raise UserError("the key has no effect here", key=key, value=value_at(plain, key), hint=hint)


def _reads(layer: Any, names: set[str]) -> bool:
    parameters = parameters_of(layer)
    return parameters is None or not names.isdisjoint(parameters)
