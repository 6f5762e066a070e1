"""Build the objects that a composed configuration describes: model, optimizer, schedule, data."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config import learning_rates
from tinyllm.config.build import build, call
from tinyllm.config.no_effect import TEMPLATE, takes_template
from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.build_cache import Show
from tinyllm.data.chat.corpus import ConversationCorpus
from tinyllm.data.corpus import Corpus
from tinyllm.data.mixture import naming
from tinyllm.data.preferences.corpus import PreferenceCorpus
from tinyllm.data.run_data import RunData, prepare_run_data
from tinyllm.data.split import RULES
from tinyllm.errors import UserError
from tinyllm.models.score_head import attach_score_head, drop_head
from tinyllm.optim.base import leave_compiler_unloaded, state_bytes
from tinyllm.optim.groups import parameter_groups, scale_with_width
from tinyllm.optim.schedules import Schedule
from tinyllm.training.batch_plan import BatchPlan, plan_batch
from tinyllm.training.callbacks import OptimizerGroup
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.memory import memory_for
from tinyllm.utils.progress import PreparationProgress
from tinyllm.utils.seeds import derive_seed

HORIZON = ("max_steps", "max_tokens", "max_epochs")
"""Keys of ``trainer`` that set the end of a run."""
BATCH = ("batch_size", "grad_accum_steps", "total_batch_tokens", "seq_len")
"""Keys of ``trainer`` that set the batch."""
PLACEHOLDER_VOCAB = 256
"""Vocabulary size of a model on ``meta`` while the tokenizer is unknown."""
LORA = "lora"
"""The node of low-rank adapters; empty: none."""
HEADS = ("head", "score")
"""Names that ``lora.targets`` may give to the head of a reward model."""
META = torch.device("meta")
"""Tensors on it have a shape and a dtype, and no memory."""


class EarlyPreparation(Protocol):
    """Opens data once their validation and their first shard are prepared."""

    def __call__(self, corpus: Any, trainer: Any, *, rules: int, show: Show) -> RunData:
        """See :func:`tinyllm.data.early_start.prepare_early`."""


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
    """The model of a configuration with its initial weights, or on ``meta`` without weights; adapted, if it says so.

    The weights depend on ``seed`` alone, and the global random stream is restored.

    Args:
        vocab_size: the tokenizer's; see :func:`vocabulary_of`.
        place: allocates and initializes a model that was built on ``meta``, as fsdp does shard by shard; None: the
            model is built with its weights on the CPU and moved to ``device``.

    Raises:
        UserError: sizes that do not fit together, ``model.vocab_size`` below the tokenizer's, or ``lora.targets`` that
            match no layer.
    """
    vocab_size = vocabulary_of(cfg, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))  # torch.manual_seed would import the compiler
        with memory_for("building the model", hint="use a smaller model, or several ranks with strategy=fsdp"):
            with torch.device("meta" if place or device.type == "meta" else "cpu"):
                model = build(cfg.model, path="model", allow=allow, vocab_size=vocab_size)
                is_reward_model = scores_answers(cfg, allow=allow)
                if is_reward_model:
                    drop_head(model)
                attach_adapters(cfg.get(LORA), model, seed=seed, allow=allow, scores=is_reward_model)
                if is_reward_model:
                    attach_score_head(model)
            model = place(model) if place else model.to(device)  # outside the context, which would allocate on meta
    model.recompute_every = int(cfg.trainer.activation_checkpointing)  # false, true or a number of blocks
    return model


def scores_answers(cfg: DictConfig, *, allow: frozenset[Option]) -> bool:
    """Whether the model of a configuration is a reward model: it scores answers and has no head over the vocabulary."""
    node = cfg.get("objective")  # configurations of the first versions have none
    target = None if node is None else resolve_target(plain(node), path="objective", extra=allow)
    return isinstance(target, type) and issubclass(target, Objective) and target.scores_answers


def attach_adapters(node: Any, model: Any, *, seed: int, allow: frozenset[Option], scores: bool = False) -> None:
    """Give a model the adapters of the node ``lora``, if it has any; all other weights are frozen.

    Args:
        scores: the model is a reward model, whose score head trains without an adapter.

    Raises:
        UserError: a number out of range, or a target that matches no layer.
    """
    if node:
        if scores and not set(HEADS).isdisjoint(node.get("targets") or ()):
            hint = "it has no head over the vocabulary, and its score head is trained whole; leave it out"
            raise UserError("a reward model has no such adapter", key="lora.targets", value=node.targets, hint=hint)
        lora = build(node, path=LORA, allow=allow)
        call(lora.attach, model, node=plain(node), path=LORA, seed=seed)


def without_adapters(cfg: DictConfig) -> DictConfig:
    """The configuration of the model that an adapted model is once its adapters are merged (``lora=none``)."""
    merged = cfg.copy()
    with open_dict(merged):
        merged[LORA] = {}
    return merged


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
    """The optimizer over the model's parameter groups, and a description of the groups.

    Raises:
        UserError: a hyper-parameter out of range, or a group rule that matches no parameter.
    """
    leave_compiler_unloaded()
    groups = parameter_groups(model, model.parameter_kinds(), getattr(model, "matrix_scalings", None))
    factory = build(cfg.optimizer, path="optimizer", allow=allow)
    optimizer = call(factory, groups, node=plain(cfg.optimizer), path="optimizer")
    scale_with_width(optimizer)
    return optimizer, described(optimizer)


def build_objective(cfg: DictConfig, model: Any, *, allow: frozenset[Option]) -> Objective:
    """What the configuration minimizes, for a model.

    Raises:
        UserError: a key out of range, or a model that the objective cannot train.
    """
    objective = build(cfg.objective, model, path="objective", allow=allow)
    assert isinstance(objective, Objective)
    return objective


def optimizer_bytes(cfg: DictConfig, model: Any, *, allow: frozenset[Option]) -> int:
    """Bytes of the optimizer's state for a model, without building the optimizer."""
    groups = parameter_groups(model, model.parameter_kinds(), getattr(model, "matrix_scalings", None))
    factory = build(cfg.optimizer, path="optimizer", allow=allow)
    return state_bytes(getattr(factory, "func", factory), groups, **getattr(factory, "keywords", {}))


def described(optimizer: torch.optim.Optimizer) -> list[OptimizerGroup]:
    """The parameter groups of an optimizer, as shown to the user: groups that would look the same are merged."""
    parameters: dict[tuple[str, float, float], list[Any]] = {}
    for group in optimizer.param_groups:
        # Show only width scaling. For its AdamW groups, Muon's lr_scale is adamw_lr / lr, which is a user setting.
        lr_scale = group["lr_scale"] if group["scaling"] is not None else 1.0
        key = group["kind"], lr_scale, group.get("weight_decay", 0.0)
        parameters.setdefault(key, []).extend(group["params"])
    return [
        OptimizerGroup(
            name=kind if scale == 1 else f"{kind}, lr × {scale:.4g}",
            tensors=len(params),
            parameters=sum(p.numel() for p in params),
            weight_decay=weight_decay,
        )
        for (kind, scale, weight_decay), params in parameters.items()
    ]


def build_schedule(cfg: DictConfig, *, n_steps: int, allow: frozenset[Option]) -> Schedule:
    """The learning-rate schedule over ``n_steps``.

    Raises:
        UserError: warm-up and decay do not fit in the horizon, or there is no learning rate.
    """
    if cfg.optimizer.lr is None:
        known = ", ".join(rule.optimizer for rule in learning_rates.RULES.values())
        hint = f"there is a rule only for {known}; set a number"
        raise UserError("no learning rate", key=learning_rates.LR, value="null", hint=hint)
    factory = build(cfg.schedule, path="schedule", allow=allow)
    node = plain(cfg.schedule)
    schedule = call(factory, node=node, path="schedule", lr=float(cfg.optimizer.lr), n_steps=n_steps)
    assert isinstance(schedule, Schedule)
    return schedule


def open_corpus(cfg: DictConfig, *, allow: frozenset[Option]) -> tuple[Any, Any]:
    """The corpus and the tokenizer's trainer, after all checks that need neither writing nor reading all the data.

    Raises:
        UserError: a file is missing or unreadable, or a setting is out of range.
    """
    tokenizer_trainer = build(cfg.tokenizer, path="tokenizer", allow=allow)
    corpus = build_corpus(plain(cfg.dataset), allow=allow, **template_for(cfg, allow=allow))
    if corpus.special_tokens:
        tokenizer_trainer.reserve(corpus.special_tokens)
    corpus.check()
    tokenizer_trainer.check()
    return corpus, tokenizer_trainer


def build_corpus(node: dict[str, Any], *, allow: frozenset[Option], **runtime: Any) -> Any:
    """The data set, or the mixture, that a configuration describes.

    Args:
        node: ``dataset`` of the configuration.
        runtime: the chat template of conversations.

    Raises:
        UserError: a setting is out of range, or a source of a mixture holds preferences or prompts.
    """
    sources = node.get("sources")
    if not isinstance(sources, dict):
        return build(node, path="dataset", allow=allow, **runtime)
    built = {}
    for name, source in sources.items():
        path = f"dataset.sources.{name}"
        target = resolve_target(source, path=path, extra=allow)
        if not issubclass(target, Corpus | ConversationCorpus):
            hint = "a mixture has texts, token ids or conversations; train on other data afterwards, with init_from"
            raise UserError("such data cannot be mixed", key=path, value=target.__name__, hint=hint)
        given = runtime if takes_template(source, allow=allow) else {}
        with naming(name):
            built[name] = build(source, path=path, allow=allow, **given)
    return build(node, path="dataset", allow=allow, sources=built)


def template_for(cfg: DictConfig, *, allow: frozenset[Option]) -> dict[str, Any]:
    """The chat template, as an argument of the data set; none if the data are no conversations.

    Raises:
        UserError: the template cannot be read.
    """
    return {TEMPLATE: build_template(cfg, allow=allow)} if takes_template(plain(cfg.dataset), allow=allow) else {}


def build_template(cfg: DictConfig, *, allow: frozenset[Option]) -> Any:
    """The chat template of a configuration.

    Raises:
        UserError: it cannot be read.
    """
    return build(cfg.chat_template, path="chat_template", allow=allow)


def open_data(
    corpus: Any,
    tokenizer_trainer: Any,
    *,
    trained_on: Mapping[str, Any] | None = None,
    lines: bool = True,
    early: EarlyPreparation | None = None,
    scores: bool = False,
) -> RunData:
    """The tokens of a corpus, from the token cache or prepared now, with a progress bar.

    Args:
        trained_on: ``data`` in the manifest of a checkpoint to resume. Its version of the split rules is used, so that
            an older run finds its own split again, and its revision of a data set of the hub. None: the current ones.
        lines: without a terminal, print a line per stage on standard output.
        early: opens data with ``start_early``, of which only the beginning is prepared; None: all are prepared first.
        scores: the pairs are read by a reward model.

    Raises:
        UserError: the data cannot be prepared, or a newer version of tinyllm split them.
    """
    rules = str(RULES) if trained_on is None else str(trained_on.get("rules", 1))
    if rules not in map(str, range(1, RULES + 1)):
        hint = f"this version of tinyllm knows 1 to {RULES}; the run was made by a newer one"
        raise UserError("unknown version of the split rules", key="dataset", value=f"rules {rules}", hint=hint)
    corpus.pin((trained_on or {}).get("revision"))
    if isinstance(corpus, PreferenceCorpus | ConversationCorpus):
        rows: Any = corpus.prepare(tokenizer_trainer)
        return rows.with_last_tokens() if scores else rows
    with PreparationProgress(lines=lines) as progress:
        if early is not None and isinstance(corpus, Corpus) and corpus.start_early:
            return early(corpus, tokenizer_trainer, rules=int(rules), show=progress)
        return prepare_run_data(corpus, tokenizer_trainer, rules=int(rules), progress=progress)
