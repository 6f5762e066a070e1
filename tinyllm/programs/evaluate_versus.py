"""``evaluate versus=…``: two runs answer the same held-out prompts, and rewards say whose answer is better."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.targets import Option
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.answering import Answering, answer_batches
from tinyllm.inference.rewards.base import Completion, Rewards
from tinyllm.inference.win_rate import LEVEL, WinRate, win_rate
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.programs.prompt_checks import build_rewards, build_tool
from tinyllm.programs.prompt_sources import Fitting, open_prompts
from tinyllm.programs.saved_model import SavedModel
from tinyllm.programs.task_answers import check_samples, shown_settings
from tinyllm.utils.device import autocast, pick_device, pick_precision
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import print_note

TEXT_ONLY = ("seq_len", "stride", "eval_tokens", "batch_size", "quantize")
"""Settings that have no meaning for a comparison of answers."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of a run to some prompts, with their rewards.

    Attributes:
        completions: those to each prompt in turn.
        scores: of every reward, by its name, and their weighted sum, by "".
        n_samples: answers to each prompt.
    """

    completions: Sequence[Completion]
    scores: dict[str, list[float]]
    n_samples: int

    def by_prompt(self) -> list[list[float]]:
        """The weighted sums of the rewards, by prompt."""
        sums = self.scores[""]
        return [sums[first : first + self.n_samples] for first in range(0, len(sums), self.n_samples)]

    def means(self) -> dict[str, float]:
        """Mean rewards, length and share of ended answers."""
        found = {"reward" + (f"_{name}" if name else ""): sum(each) / len(each) for name, each in self.scores.items()}
        count = len(self.completions)
        found["length"] = sum(each.tokens for each in self.completions) / count
        return found | {"ended": sum(each.ended for each in self.completions) / count}


def evaluate_versus(
    cfg: DictConfig, saved: SavedModel, run: str, *, allow: frozenset[Option] = frozenset()
) -> dict[str, Any]:
    """The win rate of a run over another on the prompts of a split.

    Each run reads the prompts in its own template and tokenizer. Answer k to prompt i is drawn with the same random
    numbers by both, so a run ties with itself.

    Args:
        cfg: the settings of ``conf/evaluate.yaml``, with ``versus`` and ``reward``.
        saved: the run.
        run: its name, as typed.

    Raises:
        UserError: there is no reward, a run cannot answer, or the data have no prompts.
    """
    for key in TEXT_ONLY:
        if cfg[key] is not None:
            hint = "answers are compared, and it applies to texts; leave it out"
            raise UserError("the key has no effect here", key=key, value=cfg[key], hint=hint)
    check_samples(cfg)
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    rewards = build_rewards(cfg, allow=allow, device=device)
    other = _open_other(cfg, allow=allow)
    runs = [(saved, _answering(cfg, saved, allow=allow)), (other, _answering(cfg, other, allow=allow))]
    prompts = open_prompts(cfg.dataset, saved, cfg.split, allow=allow)
    answerings = [(answering, each.cfg.model.max_seq_len) for each, answering in runs]
    fitting = Fitting(answerings, prompts, key="answers.max_new_tokens")
    numbers = list(fitting(range(len(prompts))))
    fitting.require_some()
    for each, answering in runs:
        rewards.check(
            [prompts[number] for number in numbers],
            tokenizer=each.tokenizer,
            max_new_tokens=answering.max_new_tokens,
        )
    start = time.perf_counter()
    sides = [
        _answers(cfg, each, answering, prompts, numbers, rewards, device=device, precision=precision, allow=allow)
        for each, answering in runs
    ]
    found: WinRate = win_rate(*(side.by_prompt() for side in sides))
    return {
        "win/rate": found.rate,
        "win/low": found.low,
        "win/high": found.high,
        "win/wins": found.wins,
        "win/ties": found.ties,
        "win/losses": found.losses,
        **sides[0].means(),
        **{f"versus/{name}": value for name, value in sides[1].means().items()},
        **shown_settings(cfg),
        "checkpoint": str(saved.path),
        "step": saved.step,
        "versus": str(other.path),
        "split": cfg.split,
        "prompts": len(numbers),
        "too_long": fitting.too_long,
        "precision": precision,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _open_other(cfg: DictConfig, *, allow: frozenset[Option]) -> SavedModel:
    """The run of ``versus``.

    Raises:
        UserError: it cannot be loaded, or has no chat template.
    """
    try:
        other = open_saved(cfg.versus, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
        saved_template(other)
    except UserError as error:
        if error.key != "run":
            raise
        raise UserError(error.what, key="versus", value=cfg.versus, hint=error.hint) from error
    return other


def _answering(cfg: DictConfig, saved: SavedModel, *, allow: frozenset[Option]) -> Answering:
    return Answering(
        tokenizer=saved.tokenizer,
        template=saved_template(saved),
        tool=build_tool(cfg, allow=allow),
        max_new_tokens=cfg.answers.max_new_tokens,
        temperature=cfg.answers.temperature,
    )


def _answers(
    cfg: DictConfig,
    saved: SavedModel,
    answering: Answering,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    rewards: Rewards,
    *,
    device: torch.device,
    precision: str,
    allow: frozenset[Option],
) -> Answers:
    """The answers of one run; its model is in memory only meanwhile."""
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    settings = {"n_samples": cfg.answers.n_samples, "seed": cfg.answers.seed}
    in_half = partial(autocast, device, precision)
    batches = answer_batches(answering, model, prompts, numbers, **settings, autocast=in_half)
    asked, completions = [], []
    for batch in batches:
        for prompt, answers in batch:
            asked += [prompt] * len(answers)
            completions += [answering.completion(answer) for answer in answers]
    return Answers(completions=completions, scores=rewards.scores(asked, completions), n_samples=cfg.answers.n_samples)


def show_versus(result: dict[str, Any]) -> None:
    """Print a win rate and what it is made of."""
    interval = f"{result['win/rate']:.1%} ({LEVEL:.0%}: {result['win/low']:.1%} to {result['win/high']:.1%})"
    counts = f"{result['win/wins']:,} / {result['win/ties']:,} / {result['win/losses']:,}"
    names = [name.removeprefix("versus/") for name in result if name.startswith("versus/")]
    rows = [("win rate", interval, ""), ("wins / ties / losses", counts, "")]
    rows += [(name, f"{result[name]:.4f}", f"{result[f'versus/{name}']:.4f}") for name in names]
    rows += [("prompts", f"{result['prompts']:,}", ""), ("checkpoint", result["checkpoint"], result["versus"])]
    Table(columns=[Column(name=""), Column(name="run"), Column(name="versus")], rows=rows).show()
