"""``init_from``: the weights of an earlier run as the start of this one, refused where they do not fit."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from tinyllm.config.targets import Option
from tinyllm.data.run_data import RunData
from tinyllm.errors import UserError
from tinyllm.models.parametrization import multipliers
from tinyllm.models.score_head import SCORE
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import META, build_model, plain, scores_answers
from tinyllm.programs.resume import Resumption
from tinyllm.programs.saved_weights import WeightSource, base_of, open_weights, reference_of
from tinyllm.runs.layout import TOKENIZER
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.appended import appended_tokens, first_difference, shown_token
from tinyllm.training.objectives.base import Objective
from tinyllm.training.state import own_tensors


def initial_weights(
    cfg: DictConfig, resumption: Resumption | None, *, tell: Callable[[str], None], allow: frozenset[Option]
) -> WeightSource | None:
    """The weights of ``init_from``, or of a resumed run with adapters those that they belong to; None: random weights.

    Raises:
        UserError: there are none at ``init_from``, none for adapters, or not those that a resumed run's belong to.
    """
    source = None
    if resumption:
        source = base_of(resumption.checkpoint, allow=allow)
    elif cfg.init_from is not None:
        source = open_weights(cfg.init_from, key="init_from", allow=allow, tell=tell)
    if source is not None and scores_answers(cfg, allow=allow):
        return source.for_scores()
    if source is not None and SCORE in source.shapes:
        hint = "it scores answers and has no head over the vocabulary: start from a language model, or use it with"
        hint += f" objective=grpo reward=[model] reward.model.run={cfg.init_from}"
        raise UserError("the run is a reward model", key="init_from", value=cfg.init_from, hint=hint)
    if source is not None or resumption:
        return source
    if cfg.lora:
        hint = "adapters are trained over the weights of a run or model: set init_from=<directory>, or lora=none"
        raise UserError("no weights for the adapters", key="lora", value="lora", hint=hint)
    return None


def reference_weights(
    cfg: DictConfig,
    objective: Objective,
    init_from: WeightSource | None,
    resumption: Resumption | None,
    *,
    allow: frozenset[Option],
) -> WeightSource | None:
    """The weights that an objective compares the model with in every step: those of the start; None: it does not.

    Raises:
        UserError: a resumed run began without, or they are missing or have changed.
    """
    if not objective.needs_reference_model:
        return None
    if not resumption:
        return init_from
    found = reference_of(resumption.checkpoint, allow=allow)
    if found is None:
        hint = "the run began without a penalty; start a new one with init_from and objective.beta"
        what = "the weights to compare with are not known"
        raise UserError(what, key="objective.beta", value=cfg.objective.beta, hint=hint)
    return found


def fitted(
    source: WeightSource, meta_model: Transformer, data: RunData, *, cfg: DictConfig, allow: frozenset[Option]
) -> tuple[WeightSource, list[str]]:
    """The weights of ``init_from``, with rows for the tokens that this run's tokenizer appends, and notes.

    Raises:
        UserError: tokenizer, architecture or parametrization differ in anything else.
    """
    wanted = initial_tensors(meta_model)
    notes: list[str] = []
    if source.tokenizer_fingerprint != data.tokenizer.fingerprint():
        old, new = source.tokenizer(), data.tokenizer
        tokens = appended_tokens(old, new)
        if tokens is None:
            raise _different_tokenizer(source, old, new, cfg)
        if cfg.lora:
            hint = (
                f"the rows of {', '.join(tokens)} are frozen and would never be learned: append them in a run with"
                " lora=none, or reserve them in the first one with tokenizer.special_tokens=standard"
            )
            raise UserError("adapters cannot learn new tokens", key="init_from", value=cfg.init_from, hint=hint)
        source = source.grown(old=old.vocab_size, new=new.vocab_size, rows=meta_model.vocab_size)
        notes.append(f"appended to the tokenizer: {', '.join(tokens)}; their rows start at the mean of the others")
    source.check_fits(wanted, key="init_from")
    check_multipliers(source, meta_model, cfg=cfg, vocab_size=data.tokenizer.vocab_size, allow=allow)
    return source, notes


def initial_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of a model that ``init_from`` fills, by name: all but those of adapters."""
    tensors, own = model.state_dict(), own_tensors(model)
    frozen = {name: tensor for name, tensor in tensors.items() if name not in own or name == SCORE}
    return frozen if len(own) < len(tensors) else own


def _different_tokenizer(source: WeightSource, old: Tokenizer, new: Tokenizer, cfg: DictConfig) -> UserError:
    """The error for a tokenizer with other tokens than that of ``init_from``; it names the first."""
    place = first_difference(old, new)
    difference = "they split text in different ways"
    if place is not None:
        difference = f"id {place} is {shown_token(old, place)} there and {shown_token(new, place)} here"
    hint = f"{difference}; use tokenizer=pretrained tokenizer.path={source.path / TOKENIZER}"
    return UserError("the run in init_from used a different tokenizer", key="init_from", value=cfg.init_from, hint=hint)


def check_multipliers(
    source: WeightSource, meta_model: Transformer, *, cfg: DictConfig, vocab_size: int, allow: frozenset[Option]
) -> None:
    """Refuse weights whose parametrization multiplies logits or attention scores by different factors.

    The tensors would fit, but the model would compute a different function from the one that was trained.

    Raises:
        UserError: the factors differ.
    """
    source_node, node = source.cfg.model.get("parametrization"), cfg.model.get("parametrization")
    if source_node is None or node is None or source_node == node:  # runs of the first versions have no such key
        return
    source_model = build_model(source.cfg, vocab_size=vocab_size, seed=0, device=META, allow=allow)
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
