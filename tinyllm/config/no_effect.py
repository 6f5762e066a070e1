"""Keys that the value of another key turns off. Setting such a key is reported as a mistake, not ignored."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tinyllm.config.targets import Option, resolve_target, walk_nodes
from tinyllm.errors import UserError, setting
from tinyllm.utils.nested import value_at
from tinyllm.utils.signatures import parameters_of


@dataclass(frozen=True, kw_only=True)
class Off:
    """Keys that have no effect while another key has a certain value."""

    by: str
    """The key that turns them off."""
    when: Callable[[Any], bool]
    """Whether a value of that key turns them off."""
    keys: tuple[str, ...]


def given(value: Any) -> bool:
    """Whether a value is set."""
    return value is not None


def zero(value: Any) -> bool:
    """Whether a number is 0, which turns a feature off."""
    return bool(value == 0)


def a_path(value: Any) -> bool:
    """Whether ``resume`` names a run. ``auto`` may find no run, and every job of a sweep has it."""
    return value not in (None, "auto")


def off(value: Any) -> bool:
    """Whether a switch is false."""
    return value is False


FILTERS = ("top_k", "top_p", "min_p")
SAMPLE = tuple(f"trainer.sample.{key}" for key in ("temperature", *FILTERS, "repetition_penalty"))

RULES = (
    Off(
        by="dataloader.workers",
        when=zero,
        keys=("dataloader.prefetch_factor", "dataloader.persistent_workers"),
    ),
    Off(by="ema.enabled", when=off, keys=("ema.decay", "ema.update_every", "ema.start_step")),
    Off(by="curriculum.enabled", when=off, keys=("curriculum.start_seq_len", "curriculum.steps")),
    Off(
        by="trainer.compile.enabled",
        when=off,
        keys=tuple(f"trainer.compile.{key}" for key in ("backend", "mode", "fullgraph", "dynamic", "fallback")),
    ),
    Off(by="trainer.compile.backend", when=lambda value: bool(value != "inductor"), keys=("trainer.compile.mode",)),
    Off(
        by="checkpoint.enabled",
        when=off,
        keys=("checkpoint.keep", "checkpoint.asynchronous", "trainer.checkpoint_every"),
    ),
    Off(by="trainer.profile.steps", when=zero, keys=("trainer.profile.memory",)),
    Off(by="trainer.sample_every", when=zero, keys=("trainer.sample_prompt", "trainer.sample_tokens", *SAMPLE)),
    Off(by="trainer.eval_every", when=zero, keys=("trainer.eval_tokens", "trainer.eval_train_tokens")),
    Off(
        by="trainer.nonfinite.action",
        when=lambda value: bool(value == "stop"),
        keys=("trainer.nonfinite.patience",),
    ),
    Off(by="model.tie_embeddings", when=lambda value: value is True, keys=("optimizer.orthogonal_head",)),
    Off(by="run.dir", when=given, keys=("run.name",)),
    Off(by="dataset.val_path", when=given, keys=("dataset.val_fraction",)),
    Off(by="model.block.attn.window", when=zero, keys=("model.block.attn.sinks",)),
    Off(by="model.block.attn.qk_norm", when=off, keys=("model.block.attn.qk_norm_eps",)),
    Off(by="model.block.moe.n_groups", when=lambda value: bool(value == 1), keys=("model.block.moe.n_active_groups",)),
    Off(by="model.block.moe.n_active_groups", when=lambda value: value is None, keys=("model.block.moe.n_groups",)),
    Off(by="model.block.ffn.d_ff", when=given, keys=("model.d_ff",)),
    Off(by="model.block.moe.expert_d_ff", when=given, keys=("model.block.ffn.d_ff", "model.d_ff")),
    Off(by="resume", when=a_path, keys=("init_from",)),
    Off(by="temperature", when=zero, keys=FILTERS),
    Off(by="trainer.sample.temperature", when=zero, keys=tuple(f"trainer.sample.{key}" for key in FILTERS)),
)

BLOCK = "model.block"
OFFERED = {
    "model.n_kv_heads": {"n_kv_heads"},
    "model.attn_dropout": {"attn_dropout"},
    "model.d_ff": {"d_ff", "model_d_ff"},
}
"""Values that the model passes to its parts, with the parameters that take them. Parts without one ignore the value."""


def check_effects(
    plain: dict[str, Any], *, named: Iterable[str], filled: Collection[str] = (), allow: frozenset[Option]
) -> None:
    """Refuse a key that the user set and that cannot take effect.

    Args:
        plain: the composed configuration as plain containers.
        named: keys of the command line and of the experiment.
        filled: keys that the program itself has set; they turn no other key off.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: a key has no effect; the message names what turns it off.
    """
    named = set(named)
    blocks = _blocks(plain)
    # A key of the block is off only if every kind of layer turns it off: look at the model once with each block.
    views = [plain | {"model": plain["model"] | block | {"block": block}} for block in blocks] or [plain]
    for rule in RULES:
        without_effect = sorted(named.intersection(rule.keys))
        if not without_effect or rule.by in filled:
            continue
        if all(rule.when(value_at(view, rule.by)) for view in views):
            key = without_effect[0]
            hint = f"{setting(rule.by, value_at(views[0], rule.by))} turns it off; leave one of the two out"
            raise UserError("the key has no effect here", key=key, value=value_at(plain, key), hint=hint)
    if blocks:
        _check_offered(plain, named, blocks, allow)


def _blocks(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The block node of each kind of layer."""
    kinds = value_at(plain, "model.layers.kinds")
    blocks = list(kinds.values()) if isinstance(kinds, dict) else [value_at(plain, "model.block")]
    return [block for block in blocks if isinstance(block, dict)]


def _check_offered(plain: dict[str, Any], named: set[str], blocks: list[Any], allow: frozenset[Option]) -> None:
    """Refuse a value that the model passes to its parts and that none of the parts takes."""
    nodes = [
        (path, node)
        for block in blocks
        for name, child in block.items()
        for path, node in walk_nodes(child, f"{BLOCK}.{name}")
    ]
    parts = list(dict.fromkeys(resolve_target(node, path=path, extra=allow) for path, node in nodes))
    for key in sorted(named.intersection(OFFERED)):
        if not any(_reads(part, OFFERED[key]) for part in parts):
            names = ", ".join(part.__name__ for part in parts)
            hint = f"none of {names} uses it; leave it out, or choose an option that does (attn=gqa: n_kv_heads)"
            raise UserError("the key has no effect here", key=key, value=value_at(plain, key), hint=hint)


def _reads(part: Any, names: set[str]) -> bool:
    parameters = parameters_of(part)
    return parameters is None or not names.isdisjoint(parameters)
