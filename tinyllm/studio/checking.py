"""Checks settings with the program's own first steps, and counts what they cost. Runs in a helper process."""

import os
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from tinyllm.config import schema
from tinyllm.config.cli.main import Invocation
from tinyllm.config.compose import compose_with_choices
from tinyllm.config.targets import Option, options_of, resolve_target, walk_nodes
from tinyllm.data.batch import TOKENS
from tinyllm.data.hub.access import NoAnswerError
from tinyllm.data.run_data import cached_run_data, n_tokens
from tinyllm.errors import UserError, one_line, setting
from tinyllm.programs.builders import fit_vocabulary, plain
from tinyllm.programs.describe import figures_of
from tinyllm.programs.run_plan import CheckedSettings, RunPlan, check_settings, horizon_of, plan_training
from tinyllm.studio.guard import check_arguments, check_composed
from tinyllm.studio.program import Settings
from tinyllm.studio.report import Figures, Problem, Report, Work
from tinyllm.utils.device import describe_device
from tinyllm.utils.nested import flatten
from tinyllm.utils.signatures import annotations_of

ON_HUB = "the data set is looked up on the hub when the run starts"


def prepare() -> None:
    """Arrange a helper process: a check asks nothing of the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def examine(arguments: Sequence[str], settings: Settings) -> Report:
    """Check settings of ``train``, given as typed, as far as that needs neither writing nor preparing data."""
    composed: dict[str, Any] = {}
    try:
        check_arguments(arguments, settings)
        cfg, choices = compose_with_choices(arguments, program="train", config_dir=settings.config_dir)
        composed = described(cfg, choices, settings)
        check_composed(plain(cfg), settings)
        return _figures(cfg, choices, settings, composed)
    except UserError as error:
        return Report(**composed, problem=Problem(text=str(error), key=error.key or ""))
    except Exception as error:  # the page goes on, and says where it came from
        traceback.print_exc()
        return Report(**composed, problem=Problem(text=one_line(f"unexpected {type(error).__name__}: {error}")))


def described(cfg: Any, choices: dict[str, str], settings: Settings) -> dict[str, Any]:
    """The values, choices and words of a composed configuration."""
    content = plain(cfg)
    allow = _options(settings)
    values = {key: typed(value) for key, value in flatten(content) if "_target_" not in key}
    chosen = {group: "none" if option == "None" else option for group, option in choices.items()}
    return {"values": values, "choices": chosen, "words": dict(words_of(content, allow))}


def typed(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    return setting("", value).removeprefix("=") if not isinstance(value, float) else f"{value:g}"


def words_of(content: dict[str, Any], allow: frozenset[Option]) -> Iterator[tuple[str, list[str]]]:
    """The keys that hold a switch or one of some words, with their values."""
    for key, entry in schema.fields_of(schema.SCHEMAS["train"]):
        words = entry.metadata.get("choices") or ((True, False) if entry.type is bool else ())
        limits = [entry.metadata.get(name) for name in ("at_least", "above", "below", "at_most")]
        if words and not any(limit is not None for limit in limits):
            yield key, [typed(word) for word in words]
    for path, node in walk_nodes(content, ""):
        try:
            annotations = annotations_of(resolve_target(node, path=path, extra=allow))
        except UserError:  # a package that is not installed
            continue
        for name, annotation in annotations.items():
            if name in node and (words := _literals(annotation)):
                yield f"{path}.{name}", [typed(word) for word in words]


def _literals(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (True, False)
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _options(settings: Settings) -> frozenset[Option]:
    if settings.config_dir is None:
        return frozenset()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # its classes may be modules of the current directory, as for the programs
    return options_of(settings.config_dir)


def _figures(cfg: Any, choices: dict[str, str], settings: Settings, composed: dict[str, Any]) -> Report:
    allow = _options(settings)
    figures, notes = figures_of(cfg.copy(), allow=allow)
    known = Figures(
        parameters=figures["parameters"]["total"],
        active_parameters=figures["parameters"]["active per token"],
        flops_per_token=figures["FLOPs per token"]["train"],
        memory_bytes=figures["memory"]["together"],
        cache_bytes_per_token=figures["KV cache, bytes"]["per token, bf16"],
        context=figures["model"]["context"],
        vocabulary=figures["model"]["vocabulary"],
        tokens_per_step=figures["training"]["sequences"] * figures["training"]["tokens per sequence"],
    )
    try:
        checked = check_settings(cfg, Invocation(program="train", choices=choices, allow=allow), None)
    except UserError as error:
        if not isinstance(error.__cause__, NoAnswerError):
            return Report(**composed, figures=known, problem=Problem(text=str(error), key=error.key or ""))
        return Report(**composed, figures=known, notes=[*notes, ON_HUB])
    planned = plan_of(checked)
    length = _length(checked, planned)
    work = Work(
        objective=choices["objective"],
        precision=checked.precision,
        device=describe_device(checked.device),
        ranks=checked.batch.world_size,
    )
    known = replace(known, work=work, tokens_per_step=checked.batch.tokens, **length)
    return Report(**composed, figures=known, notes=[*notes, *(planned or checked).notes])


def plan_of(checked: CheckedSettings) -> RunPlan | None:
    """The plan of a run whose data is prepared; None for other data.

    Raises:
        UserError: the data does not fit the settings.
    """
    if checked.meta_objective.reads != TOKENS:
        return None
    data = cached_run_data(checked.corpus, checked.tokenizer_trainer)
    if data is None:
        return None
    fit_vocabulary(checked.cfg, checked.meta_model, vocab_size=data.tokenizer.vocab_size)
    return plan_training(checked, data)


def _length(checked: CheckedSettings, planned: RunPlan | None) -> dict[str, Any]:
    """How long the run is, as far as it is known."""
    cfg, batch = checked.cfg, checked.batch
    if planned is not None:
        tokens = planned.lengths.total(planned.horizon.steps) * batch.sequences
        per_epoch = planned.sampler.windows_per_epoch * batch.seq_len
        known = {"train_tokens": n_tokens(planned.data, "train"), "epochs": tokens / per_epoch}
        return known | {"steps": planned.max_steps, "tokens": tokens}
    if cfg.trainer.max_epochs is not None:
        return {}
    steps = horizon_of(cfg, batch, checked.curriculum, None, epoch_tokens=0).steps
    return {"steps": steps, "tokens": checked.curriculum.lengths(steps, shift=0).total(steps) * batch.sequences}
