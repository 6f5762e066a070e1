"""Rollouts: many answers to many prompts at once, with the results of tools forced in.

The rows of a batch have different lengths. Every row stands at its own position of one static cache, so it sees exactly
what it would see alone: in fp32 it gets the same tokens in any company. Its random numbers are a hash of the row's seed
and the position, and depend on nothing else: no generator has a state, so a run that is resumed draws the same answers.

Shapes: B rows (prompts times samples), L positions of the cache, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyllm.data.shuffle import mixed
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.sampling import forbids_scans
from tinyllm.models.inference_copy import branched_cache, inference_copy
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.utils.stop_signal import Interrupted, Stopping


@dataclass(frozen=True, kw_only=True)
class Handover:
    """What follows a stop token of the assistant.

    Attributes:
        forced: ids of the tools' results, up to where the assistant goes on; empty: the answer is finished.
        ended: the answer is complete; false with no ``forced``: it called a tool that it may not call.
        calls, errors: calls of tools that were carried out, and how many of them failed.
        results: of the calls, as text.
    """

    forced: Sequence[int] = ()
    ended: bool = True
    calls: int = 0
    errors: int = 0
    results: Sequence[str] = ()


GROWTH = 32
"""Positions by which the cache grows: most answers end long before the limit."""

OnStop = Callable[[Sequence[int], int], Handover]
"""Called with the ids that the assistant wrote since it began or since the last result, the stop token included, and
with the number of calls before them."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sampled answer.

    Attributes:
        prompt, sample: which prompt, and which of its samples.
        ids: what follows the prompt: generated and forced tokens.
        generated: for each of them, whether the model chose it; forced ones are results of tools.
        logprobs: for each of them, its log-probability at the sampling temperature; 0 where forced.
        ended: the answer was ended by its stop token; false: it was cut off by a limit.
        calls, errors: calls of tools, and how many failed.
        results: of the calls, as text, in order.
    """

    prompt: int
    sample: int
    ids: np.ndarray
    generated: np.ndarray
    logprobs: np.ndarray
    ended: bool
    calls: int
    errors: int
    results: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return int(self.generated.sum())

    def last_turn(self) -> np.ndarray:
        """The ids that the model wrote after the last forced token."""
        forced = np.flatnonzero(~self.generated)
        return self.ids[forced[-1] + 1 if len(forced) else 0 :]


def end_of_answer(ids: Sequence[int], calls: int) -> Handover:
    """The ``OnStop`` of a model without tools: every stop token ends the answer."""
    return Handover()


@torch.no_grad()
def rollout(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[Sequence[int]],
    max_new_tokens: int,
    max_forced_tokens: int = 0,
    stop_ids: Collection[int],
    on_stop: OnStop = end_of_answer,
    temperature: float = 1.0,
    vocab_size: int,
    excluded_ids: Sequence[int] = (),
    autocast: Autocast = nullcontext,
    kernels: DecodeKernels | None = None,
    stopping: Stopping = lambda: False,
) -> list[Answer]:
    """Sample answers to prompts.

    Tokens are drawn from the whole distribution at ``temperature``; nothing is cut off, so that the log-probabilities
    are those of the distribution that the tokens come from.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one token each.
        seeds: a seed per prompt and sample; all prompts have equally many samples.
        max_new_tokens: limit on the tokens that the model chooses, per answer.
        max_forced_tokens: limit on the forced ones; an answer whose next result would exceed it is cut off.
        stop_ids: tokens after which ``on_stop`` is asked.
        temperature: divides the logits; 0: always the most likely token.
        vocab_size: number of tokenizer ids; a model may have more rows, which are never chosen.
        excluded_ids: further ids that are never chosen, such as ``<unk>``.
        kernels: attend to the cache with these on a CPU; they read of each row only what it holds.
        stopping: checked before every token.

    Returns:
        The answers, sample after sample and prompt after prompt.

    Raises:
        UserError: a prompt and its answer may exceed the context, or the model's output is not a number.
        Interrupted: ``stopping`` returned true.
    """
    n_samples, longest = len(seeds[0]), max(map(len, prompts))
    if longest + max_new_tokens > model.max_seq_len:
        hint = f"the longest prompt has {longest} tokens and the context {model.max_seq_len}: at most"
        hint += f" {max(model.max_seq_len - longest, 0)} new tokens; use shorter prompts or a longer context"
        raise UserError("the context is too short", key="max_new_tokens", value=max_new_tokens, hint=hint)
    # Sample after sample, so that the first of each prompt are the first rows; prompts of equal length side by side.
    order = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
    rows = _Rows(
        places=[(prompt, sample) for sample in range(n_samples) for prompt in order],
        prompts=prompts,
        seeds=seeds,
        limits=_Limits(new=max_new_tokens, forced=max_forced_tokens, context=model.max_seq_len),
        stop_ids=stop_ids,
        on_stop=on_stop,
    )
    chooser = _Chooser(temperature, vocab_size, excluded_ids)
    with autocast():
        model = inference_copy(model, kernels)
        hidden_BD, cache = _read_prompts(model, [prompts[prompt] for prompt in order], rows)
        while True:
            if stopping():
                raise Interrupted
            ids_B, logprobs_B = chooser.choose(model.logits(hidden_BD), rows.uniform())
            rows.append(ids_B, logprobs_B)
            moves = rows.drop_finished()
            for source, target in moves:
                cache.copy_row(source, target)
            if not len(rows):
                return sorted(rows.answers, key=lambda answer: (answer.prompt, answer.sample))
            cache = cache.rows(0, len(rows))
            if rows.longest > cache.max_len:  # by then, many rows are finished
                smaller, cache = cache, model.make_cache(len(rows), min(rows.most, rows.longest + GROWTH))
                cache.copy_all(smaller)
            hidden_BD = model(rows.last_B1(model.device), cache=cache)[:, -1]


def _read_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]], rows: "_Rows") -> tuple[Tensor, Any]:
    """Hidden states (B, D) of the last token of every row, and a cache that holds its prompt.

    Each prompt is read once for all its samples. Prompts of equal length are read together: padding would be no faster,
    and would fill the caches of a window.
    """
    longest = max(map(len, prompts))
    n_samples = len(rows) // len(prompts)
    of_prompts = model.make_cache(len(prompts), longest)
    hidden, first = [], 0
    for _, group in groupby(prompts, key=len):
        ids_BT = torch.tensor([list(ids) for ids in group], device=model.device)
        hidden.append(model(ids_BT, cache=of_prompts.rows(first, first + len(ids_BT)))[:, -1])
        first += len(ids_BT)
    hidden_BD = torch.cat(hidden).repeat(n_samples, 1)
    beginnings = list(range(len(prompts))) * n_samples
    branched = branched_cache(model, of_prompts, beginnings, n_new=rows.limits.new + rows.limits.forced)
    if branched is not None:
        return hidden_BD, branched
    cache = model.make_cache(len(rows), min(rows.most, longest + GROWTH))
    cache.rows(0, len(prompts)).copy_all(of_prompts)
    for row, prompt in enumerate(beginnings):
        if row != prompt:
            cache.copy_row(prompt, row)
    return hidden_BD, cache


class _Chooser:
    """Chooses the next token of every row from its logits and its random number."""

    def __init__(self, temperature: float, vocab_size: int, excluded_ids: Sequence[int]) -> None:
        self.temperature, self.vocab_size, self.excluded_ids = temperature, vocab_size, list(excluded_ids)

    def choose(self, logits_BV: Tensor, uniform_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities (B,) of a token per row."""
        logits_BV = logits_BV[:, : self.vocab_size].float()
        if forbids_scans(logits_BV.device):
            logits_BV = logits_BV.cpu()
        logits_BV[:, self.excluded_ids] = -torch.inf
        if self.temperature:
            logits_BV /= self.temperature
        logprobs_BV = logits_BV.log_softmax(dim=-1)
        if self.temperature:
            # The first token whose cumulative probability exceeds the random number, in float64.
            cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
            uniform_B1 = torch.from_numpy(uniform_B)[:, None].to(cumulative_BV.device, non_blocking=True)
            uniform_B1 = uniform_B1 * cumulative_BV[:, -1:]
            ids_B1 = torch.searchsorted(cumulative_BV, uniform_B1, right=True).clamp(max=self.vocab_size - 1)
        else:
            ids_B1 = logprobs_BV.argmax(dim=-1, keepdim=True)
        chosen_B = logprobs_BV.gather(1, ids_B1)[:, 0].cpu().numpy()
        if np.isnan(chosen_B).any():
            hint = "its weights are damaged; use an earlier checkpoint"
            raise UserError("the model's output is not a number (NaN)", hint=hint)
        return ids_B1[:, 0].cpu().numpy(), chosen_B


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Limits on each answer, which do not depend on the other rows.

    Attributes:
        new: tokens that the model chooses.
        forced: tokens of results.
        context: tokens of prompt and answer.
    """

    new: int
    forced: int
    context: int


class _Rows:
    """The tokens of all rows that are in the batch, as arrays whose first axis is the row.

    Attributes:
        answers: of the finished rows.
        place: (B, 2): prompt and sample of each row.
        position: (B,) position of the next token; the model has read all before the last one.
        known: (B,) number of known tokens; beyond ``position`` where a result is being forced in.
    """

    def __init__(
        self,
        *,
        places: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        limits: _Limits,
        stop_ids: Collection[int],
        on_stop: OnStop,
    ) -> None:
        self.limits, self.stop_ids, self.on_stop = limits, frozenset(stop_ids), on_stop
        self.answers: list[Answer] = []
        self.place = np.array(places)
        self.seeds = np.array([seeds[prompt][sample] for prompt, sample in places], dtype=np.uint64)
        self.prompt_end = np.array([len(prompts[prompt]) for prompt, _ in places])
        length = min(int(self.prompt_end.max()) + limits.new + limits.forced, limits.context)
        self.ids = np.zeros((len(places), length), dtype=np.int64)
        for row, (prompt, _) in enumerate(places):
            self.ids[row, : len(prompts[prompt])] = prompts[prompt]
        self.generated = np.zeros(self.ids.shape, dtype=bool)
        self.logprobs = np.zeros(self.ids.shape, dtype=np.float32)
        self.position, self.known, self.turn_start = (self.prompt_end.copy() for _ in range(3))
        self.new, self.forced, self.calls, self.errors = (np.zeros(len(places), dtype=np.int64) for _ in range(4))
        self.results = np.fromiter(((),) * len(places), dtype=object)
        self.is_finished = np.zeros(len(places), dtype=bool)

    def __len__(self) -> int:
        """Rows that are in the batch."""
        return len(self.place)

    @property
    def most(self) -> int:
        """Most tokens of a row."""
        return self.ids.shape[1]

    def uniform(self) -> np.ndarray:
        """A number in [0, 1) per row, which depends on its seed and position only."""
        return (mixed(self.seeds ^ mixed(self.position.astype(np.uint64))) >> np.uint64(11)) * 2.0**-53

    @property
    def longest(self) -> int:
        """Tokens of the longest row, the one that is read next included."""
        return int(self.position.max())

    def last_B1(self, device: torch.device) -> Tensor:
        """The token of every row that the model reads next."""
        return torch.from_numpy(self.ids[np.arange(len(self.ids)), self.position - 1])[:, None].to(device)

    def append(self, ids_B: np.ndarray, logprobs_B: np.ndarray) -> None:
        """Move every unfinished row one token on: by the chosen token, unless one is forced."""
        chosen = np.flatnonzero(self.position == self.known)
        self.position += 1
        at = self.known[chosen]
        self.ids[chosen, at], self.logprobs[chosen, at] = ids_B[chosen], logprobs_B[chosen]
        self.generated[chosen, at] = True
        self.known[chosen] += 1
        self.new[chosen] += 1
        full = (self.new[chosen] == self.limits.new) | (self.known[chosen] == self.limits.context)
        for row, token, is_full in zip(chosen.tolist(), ids_B[chosen].tolist(), full.tolist(), strict=True):
            if token in self.stop_ids:
                self._stop(row, is_full=is_full)
            elif is_full:
                self._finish(row, ended=False)

    def _stop(self, row: int, *, is_full: bool) -> None:
        """Carry out what the model asked for before its stop token, or finish the row."""
        written = self.ids[row, self.turn_start[row] : self.known[row]].tolist()
        handover = self.on_stop(written, int(self.calls[row]))
        self.calls[row] += handover.calls
        self.errors[row] += handover.errors
        self.results[row] = (*self.results[row], *handover.results)
        count = len(handover.forced)
        if not count:
            self._finish(row, ended=handover.ended)
            return
        self.forced[row] += count
        start, end = self.known[row], self.known[row] + count
        if is_full or self.forced[row] > self.limits.forced or end >= self.limits.context:
            self._finish(row, ended=False)  # no room for the result and an answer to it
            return
        self.ids[row, start:end] = handover.forced
        self.known[row] = self.turn_start[row] = end

    def _finish(self, row: int, *, ended: bool) -> None:
        prompt, sample = self.place[row].tolist()
        answer = slice(self.prompt_end[row], self.known[row])
        self.answers.append(
            Answer(
                prompt=prompt,
                sample=sample,
                ids=self.ids[row, answer].copy(),
                generated=self.generated[row, answer].copy(),
                logprobs=self.logprobs[row, answer].copy(),
                ended=ended,
                calls=int(self.calls[row]),
                errors=int(self.errors[row]),
                results=self.results[row],
            )
        )
        self.is_finished[row] = True

    def drop_finished(self) -> list[tuple[int, int]]:
        """Drop the finished rows; last ones take their places, so that few rows move: (source, target) in order."""
        count, moves = len(self.place), []
        for row in np.flatnonzero(self.is_finished)[::-1].tolist():
            count -= 1
            if row < count:
                moves.append((count, row))
                for values in self._arrays().values():
                    values[row] = values[count]
        if count < len(self.place):
            for name, values in self._arrays().items():
                setattr(self, name, values[:count])
        return moves

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: values for name, values in vars(self).items() if isinstance(values, np.ndarray)}
