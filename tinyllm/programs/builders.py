"""From a composed configuration to the objects it describes; shared by the programs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.build import build, call
from tinyllm.config.targets import Option
from tinyllm.data.prepare import TokenData, prepare
from tinyllm.data.split import RULES
from tinyllm.errors import UserError
from tinyllm.optim.base import state_bytes
from tinyllm.optim.groups import parameter_groups, scale_with_width
from tinyllm.optim.schedules import Schedule
from tinyllm.training.batch_plan import BatchPlan, plan_batch
from tinyllm.training.callbacks import OptimizerGroup
from tinyllm.utils.memory import memory_for
from tinyllm.utils.progress import PreparationProgress
from tinyllm.utils.seeds import stream

HORIZON = ("max_steps", "max_tokens", "max_epochs")
BATCH = ("batch_size", "grad_accum_steps", "total_batch_tokens", "seq_len")
PLACEHOLDER_VOCAB = 256
"""Vocabulary size of a model on ``meta`` while the tokenizer is unknown."""
META = torch.device("meta")


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain containers, interpolations resolved."""
    content = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def build_model(
    cfg: DictConfig,
    *,
    vocab_size: int,
    seed: int,
    device: torch.device,
    allow: frozenset[Option],
    place: Callable[[Any], Any] | None = None,
) -> Any:
    """The model of a configuration with its initial weights; on ``meta`` without any.

    The weights come from the run's seed alone: the global random stream is left where it was.

    Args:
        place: gives a model that was built on ``meta`` memory and weights; None: it is built with them.

    Raises:
        UserError: sizes that do not fit together, or ``model.vocab_size`` below the tokenizer's.
    """
    vocab_size = vocabulary_of(cfg, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "weights"))  # torch.manual_seed would import the compiler
        with memory_for("building the model", hint="a smaller model needs less, or several ranks with strategy=fsdp"):
            with torch.device("meta" if place or device.type == "meta" else "cpu"):
                model = build(cfg.model, path="model", allow=allow, vocab_size=vocab_size)
            model = place(model) if place else model.to(device)  # outside: what it fills is no tensor on meta
    model.recompute_every = int(cfg.trainer.activation_checkpointing)  # false, true or a number of blocks
    return model


def vocabulary_of(cfg: DictConfig, vocab_size: int) -> int:
    """The vocabulary size of the model: ``model.vocab_size``, or the tokenizer's ``vocab_size`` if that is null.

    Raises:
        UserError: ``model.vocab_size`` is smaller than the tokenizer's.
    """
    setting = cfg.model.vocab_size
    if setting is not None and setting < vocab_size:
        hint = f"at least {vocab_size}; null takes the tokenizer's"
        raise UserError("vocabulary smaller than the tokenizer's", key="model.vocab_size", value=setting, hint=hint)
    return int(setting or vocab_size)


def fit_vocabulary(cfg: DictConfig, meta_model: Any, *, vocab_size: int) -> None:
    """Resize a model on ``meta`` to the vocabulary of the tokenizer, which is known only once the data is open.

    Raises:
        UserError: ``model.vocab_size`` is smaller than the tokenizer's.
    """
    vocab_size = vocabulary_of(cfg, vocab_size)
    if meta_model.vocab_size != vocab_size:
        meta_model.resize_vocabulary(vocab_size)


def planned_batch(cfg: DictConfig, *, world_size: int = 1) -> BatchPlan:
    """The batch that ``trainer.*`` describes; see :func:`plan_batch`."""
    settings = {name: cfg.trainer[name] for name in BATCH}
    return plan_batch(**settings, max_seq_len=cfg.model.max_seq_len, world_size=world_size)


def build_optimizer(
    cfg: DictConfig, model: Any, *, allow: frozenset[Option]
) -> tuple[torch.optim.Optimizer, list[OptimizerGroup]]:
    """The optimizer over the model's parameter groups, and what the groups are.

    Raises:
        UserError: a hyper-parameter out of range, or a rule that matches nothing.
    """
    groups = parameter_groups(model, model.parameter_kinds(), getattr(model, "matrix_scalings", None))
    factory = build(cfg.optimizer, path="optimizer", allow=allow)
    optimizer = call(factory, groups, node=plain(cfg.optimizer), path="optimizer")
    scale_with_width(optimizer)
    return optimizer, described(optimizer)


def optimizer_bytes(cfg: DictConfig, model: Any, *, allow: frozenset[Option]) -> int:
    """Bytes that the optimizer of a configuration keeps for the model; it is not made."""
    groups = parameter_groups(model, model.parameter_kinds(), getattr(model, "matrix_scalings", None))
    factory = build(cfg.optimizer, path="optimizer", allow=allow)
    return state_bytes(getattr(factory, "func", factory), groups, **getattr(factory, "keywords", {}))


def described(optimizer: torch.optim.Optimizer) -> list[OptimizerGroup]:
    """The groups of an optimizer for a person; those that differ in nothing a person would see are one."""
    found: dict[tuple[str, float, float], list[Any]] = {}
    for group in optimizer.param_groups:
        own = group["scaling"] is not None
        key = group["kind"], group["lr_scale"] if own else 1.0, group.get("weight_decay", 0.0)
        found.setdefault(key, []).extend(group["params"])
    return [
        OptimizerGroup(
            name=kind if scale == 1 else f"{kind}, lr × {scale:.4g}",
            tensors=len(params),
            parameters=sum(p.numel() for p in params),
            weight_decay=weight_decay,
        )
        for (kind, scale, weight_decay), params in found.items()
    ]


def build_schedule(cfg: DictConfig, *, n_steps: int, allow: frozenset[Option]) -> Schedule:
    """The learning-rate schedule over ``n_steps``.

    Raises:
        UserError: the plan does not fit into the horizon.
    """
    factory = build(cfg.schedule, path="schedule", allow=allow)
    node = plain(cfg.schedule)
    schedule = call(factory, node=node, path="schedule", lr=float(cfg.optimizer.lr), n_steps=n_steps)
    assert isinstance(schedule, Schedule)
    return schedule


def open_corpus(cfg: DictConfig, *, allow: frozenset[Option]) -> tuple[Any, Any]:
    """The corpus and the tokenizer's trainer, checked as far as is cheap; nothing is read whole or written.

    Raises:
        UserError: a file is missing or unreadable, a setting makes no sense.
    """
    corpus = build(cfg.dataset, path="dataset", allow=allow)
    trainer = build(cfg.tokenizer, path="tokenizer", allow=allow)
    corpus.check()
    trainer.check()
    return corpus, trainer


def open_data(
    corpus: Any, trainer: Any, *, trained_on: Mapping[str, Any] | None = None, lines: bool = True
) -> TokenData:
    """The token cache of corpus and tokenizer, built with a progress bar if it is not there yet.

    Args:
        trained_on: what a checkpoint says of its data; they are split by the rules of their time, so that a run
            made under older ones finds its own split again. None: by the rules of today.
        lines: without a terminal, print a line per stage on standard output.
    """
    rules = str(RULES) if trained_on is None else str(trained_on.get("rules", 1))
    if rules not in map(str, range(1, RULES + 1)):
        hint = f"this version knows them up to {RULES}; a newer one made the run"
        raise UserError("unknown rules of the split", key="dataset", value=f"rules {rules}", hint=hint)
    with PreparationProgress(lines=lines) as progress:
        return prepare(corpus, trainer, rules=int(rules), progress=progress)
