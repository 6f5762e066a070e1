"""Preferences from a model's own answers: for each prompt, the best answer against the worst."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tinyllm.data.chat.messages import Message
from tinyllm.data.prompts import Prompt
from tinyllm.inference.answering import Answering, answer_batches
from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.rewards.base import Completion, Rewards


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An answer that may be written to a file.

    Attributes:
        messages: the answer as a file holds it.
        reward: the weighted sum of its rewards.
    """

    messages: tuple[Message, ...]
    completion: Completion
    reward: float


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """Two answers to a prompt, of which the chosen one has the higher reward."""

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate

    def to_dict(self) -> dict[str, Any]:
        """The pair as ``dataset=preferences`` reads it."""
        before = self.prompt.conversation
        record: dict[str, Any] = {"prompt": [message.to_dict() for message in before.messages]}
        for name, side in (("chosen", self.chosen), ("rejected", self.rejected)):
            record[name] = [message.to_dict() for message in side.messages]
        return record | ({"tools": list(before.tools)} if before.tools else {})


@dataclass(kw_only=True)
class Tally:
    """Counts of a search for pairs.

    Attributes:
        prompts, answers: prompts that were answered, and their answers.
        unfinished: answers that were cut off by a limit.
        unwritable: answers that ended but are no messages: empty, or with calls that the template does not write so.
        ties: prompts without two answers of different reward, cut-off and unwritable ones aside.
        scores: sums over all answers of every reward by its name, and by "" of their weighted sum.
    """

    prompts: int = 0
    answers: int = 0
    unfinished: int = 0
    unwritable: int = 0
    ties: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    def add(self, scores: dict[str, list[float]]) -> None:
        """Count the scores of a batch of answers."""
        for name, values in scores.items():
            self.scores[name] = self.scores.get(name, 0.0) + math.fsum(values)


def find_pairs(
    answering: Answering,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    numbers: Iterable[int],
    rewards: Rewards,
    tally: Tally,
    *,
    n_samples: int,
    seed: int,
    autocast: Autocast = nullcontext,
) -> Iterator[AnswerPair]:
    """Yields a pair for each prompt whose answers differ in reward, in the order of ``numbers``.

    Answers that were cut off take no part: with the stop token that a file gives them, they would be other answers.

    Args:
        numbers: which of the prompts, in this order.
        tally: counts what is found and what is left out; of whole batches, also when no more pairs are asked for.
        n_samples: answers to each prompt.
        seed: answer k to prompt i is a function of (seed, i, k).

    Raises:
        UserError: a prompt lacks the answer that a reward reads, or a reward is not a number.
    """
    batches = answer_batches(answering, model, prompts, numbers, n_samples=n_samples, seed=seed, autocast=autocast)
    for batch in batches:
        rewards.check(
            [prompt for prompt, _ in batch], tokenizer=answering.tokenizer, max_new_tokens=answering.max_new_tokens
        )
        completions = [answering.completion(answer) for _, answers in batch for answer in answers]
        scores = rewards.scores([prompt for prompt, answers in batch for _ in answers], completions)
        tally.add(scores)
        pairs = []
        for place, (prompt, answers) in enumerate(batch):
            part = slice(place * n_samples, (place + 1) * n_samples)
            candidates = []
            for answer, completion, reward in zip(answers, completions[part], scores[""][part], strict=True):
                messages = answering.written(prompt, answer)
                tally.answers += 1
                tally.unfinished += not answer.ended
                tally.unwritable += answer.ended and messages is None
                if messages is not None:
                    candidates.append(Candidate(messages=messages, completion=completion, reward=reward))
            tally.prompts += 1
            pair = best_and_worst(prompt, candidates)
            tally.ties += pair is None
            if pair is not None:
                pairs.append(pair)
        yield from pairs


def best_and_worst(prompt: Prompt, candidates: Sequence[Candidate]) -> AnswerPair | None:
    """The answers with the highest and with the lowest reward, the first of each; None if there is no difference."""
    if not candidates:
        return None
    chosen = max(candidates, key=lambda candidate: candidate.reward)
    rejected = min(candidates, key=lambda candidate: candidate.reward)
    if chosen.reward == rejected.reward or chosen.messages == rejected.messages:
        return None
    return AnswerPair(prompt=prompt, chosen=chosen, rejected=rejected)
