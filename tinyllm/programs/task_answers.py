"""``evaluate`` on tasks: the model answers their problems, with tools, and its answers are checked."""

import sys
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.prompt_data import PromptCorpus
from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.corpus import TaskCorpus
from tinyllm.errors import UserError, setting
from tinyllm.inference.answering import Answering, answer_metrics
from tinyllm.inference.rewards.base import Rewards
from tinyllm.programs.builders import plain
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.prompt_checks import build_rewards, build_tool
from tinyllm.programs.saved_model import SavedModel
from tinyllm.utils.device import autocast
from tinyllm.utils.environment import shows

KEYS = ("answers", "tools", "reward")
"""Nodes that only tasks and prompts read."""


def check_answer_keys(dataset: DictConfig, typed: Collection[str], *, allow: frozenset[Option]) -> None:
    """Refuse settings of answers on the command line if the data are neither tasks nor prompts.

    Args:
        dataset: the node of the data set.
        typed: keys and groups of the command line.

    Raises:
        UserError: names the key.
    """
    named = sorted(key for key in typed if key.partition(".")[0] in KEYS)
    if named and not issubclass(resolve_target(plain(dataset), path="dataset", extra=allow), TaskCorpus | PromptCorpus):
        hint = "the data have no problems to answer; leave it out, or choose dataset=tasks"
        raise UserError("the key has no effect here", file=named[0], hint=hint)


def task_answers(
    cfg: DictConfig,
    saved: SavedModel,
    corpus: TaskCorpus,
    model: Any,
    *,
    device: torch.device,
    precision: str,
    allow: frozenset[Option],
) -> dict[str, float]:
    """The metrics of :func:`tinyllm.inference.answering.answer_metrics` on the problems of ``cfg.split``.

    Raises:
        UserError: the settings do not fit together, or the model was not trained on conversations.
    """
    prompts = corpus.prompts(cfg.split)
    rewards = build_rewards(cfg, allow=allow, device=device) if cfg.reward else None
    found = prompt_answers(cfg, saved, prompts, model, rewards, device=device, precision=precision, allow=allow)
    return {f"{cfg.split}/{name}" if name.startswith("reward") else name: value for name, value in found.items()}


def prompt_answers(
    cfg: DictConfig,
    saved: SavedModel,
    prompts: Sequence[Prompt],
    model: Any,
    rewards: Rewards | None,
    *,
    device: torch.device,
    precision: str,
    allow: frozenset[Option],
) -> dict[str, float]:
    """The metrics of :func:`tinyllm.inference.answering.answer_metrics`; those of ``rewards``, too, if there are any.

    Raises:
        UserError: the settings do not fit together, or the model was not trained on conversations.
    """
    settings = cfg.answers
    check_samples(cfg)
    answering = Answering(
        tokenizer=saved.tokenizer,
        template=saved_template(saved),
        tool=build_tool(cfg, allow=allow),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
    )
    longest = max(len(answering.prompt_ids(prompt)) for prompt in prompts)
    room = saved.cfg.model.max_seq_len - longest
    if settings.max_new_tokens > room:
        given = setting("answers.max_new_tokens", settings.max_new_tokens)
        hint = f"at most {room}: the longest prompt has {longest} tokens, the context {saved.cfg.model.max_seq_len}"
        raise UserError("prompt and answer do not fit into the context", file=given, hint=hint)
    if rewards is not None:
        rewards.check(prompts, tokenizer=saved.tokenizer, max_new_tokens=settings.max_new_tokens)
    bar = Progress(console=Console(stderr=True), transient=True, disable=not (sys.stderr.isatty() and shows("INFO")))
    task = bar.add_task("answering", total=len(prompts) * settings.n_samples)
    with bar:
        return answer_metrics(
            answering,
            model,
            prompts,
            n_samples=settings.n_samples,
            seed=settings.seed,
            rewards=rewards,
            autocast=partial(autocast, device, precision),
            progress=lambda done: bar.update(task, completed=done),
        )


def check_samples(cfg: DictConfig) -> None:
    """Refuse several answers that would all be the same.

    Raises:
        UserError: they would.
    """
    settings = cfg.answers
    if settings.n_samples > 1 and not settings.temperature:
        hint = "every answer would be the same: set answers.temperature above 0, or leave it out"
        what = "several answers need a temperature"
        raise UserError(what, key="answers.n_samples", value=settings.n_samples, hint=hint)


def answer_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The answers' metrics as rows of a table."""
    names = [name for name in result if name.startswith("task/")]
    return [(name, f"{result[name]:.1f}" if name.endswith("/tokens") else f"{result[name]:.1%}") for name in names]


def shown_settings(cfg: DictConfig) -> dict[str, Any]:
    """How the answers were made, for the JSON result."""
    tool = OmegaConf.select(cfg, "tools._target_")
    return {"tools": tool.rpartition(".")[2] if tool else None, "answers": OmegaConf.to_container(cfg.answers)}
