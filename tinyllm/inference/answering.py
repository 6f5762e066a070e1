"""Answers of a model to prompts, with tools, as text; and how many of them are right."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from tinyllm.data.chat.messages import ASSISTANT, TOOL, Conversation, Message, ToolCall, conversation_of
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.rewards.base import Completion, Rewards
from tinyllm.inference.rollout import Answer, rollout
from tinyllm.inference.tools.base import Tool
from tinyllm.inference.tools.calls import BEGIN, ToolLoop, calls_in, spelled
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.seeds import derive_seed
from tinyllm.utils.stop_signal import Stopping

MOST_ROWS = 128
"""Answers that are generated at a time; more take more memory and are hardly faster."""


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How a model answers prompts.

    Args:
        tool: the tool that it may call; None: none.
        max_new_tokens: limit on the tokens that the model chooses, per answer; those of results have the same limit.
        temperature: 0: always the most likely token.

    Raises:
        UserError: ``max_new_tokens`` or ``temperature`` is out of range, or turns have no stop token.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    tool: Tool | None
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        self.template.require(self.tokenizer)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What the model reads.

        Raises:
            UserError: the tokenizer cannot express it.
        """
        try:
            return self.template.render(prompt.conversation, self.tokenizer, add_generation_prompt=True).ids.tolist()
        except UserError as error:
            if error.key or error.file:
                raise
            raise UserError(error.what, file=prompt.name, hint=error.hint) from error

    def answers(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[Sequence[int]],
        autocast: Autocast = nullcontext,
        kernels: DecodeKernels | None = None,
        stopping: Stopping = lambda: False,
    ) -> list[Answer]:
        """Answers to every prompt, one per seed; see :func:`tinyllm.inference.rollout.rollout`."""
        unknown = self.tokenizer.unk_id
        return rollout(
            model,
            [self.prompt_ids(prompt) for prompt in prompts],
            seeds=seeds,
            max_new_tokens=self.max_new_tokens,
            max_forced_tokens=0 if self.tool is None else self.max_new_tokens,
            stop_ids=self.template.stop_ids(self.tokenizer) | self.tokenizer.end_ids,
            on_stop=ToolLoop(tokenizer=self.tokenizer, template=self.template, tool=self.tool),
            temperature=self.temperature,
            vocab_size=self.tokenizer.vocab_size,
            excluded_ids=() if unknown is None else (unknown,),
            autocast=autocast,
            kernels=kernels,
            stopping=stopping,
        )

    def completion(self, answer: Answer) -> Completion:
        """An answer as text: what the assistant says after its last call, without special tokens."""
        text = self.tokenizer.decode(answer.last_turn().tolist())
        return Completion(
            text=text,
            tokens=answer.tokens,
            ended=answer.ended,
            calls=answer.calls,
            errors=answer.errors,
            messages=(*self._calls(answer), Message(ASSISTANT, text)),
        )

    def written(self, prompt: Prompt, answer: Answer) -> tuple[Message, ...] | None:
        """The messages that a file holds of an answer; None if rendering them would give another text.

        So it is with an answer that was cut off, that says nothing, or whose calls are not formed as the template does.
        """
        messages = self.completion(answer).messages
        last = messages[-1]
        ids = [*self.prompt_ids(prompt), *answer.ids.tolist()]
        text, before = spelled(self.tokenizer, ids), prompt.conversation
        if not answer.ended or "\ufffd" in self.tokenizer.decode(answer.ids.tolist()):
            return None
        for content in (last.content, last.content.removesuffix("\n")):  # a template may end a turn with a line
            said = (*messages[:-1], replace(last, content=content))
            whole = Conversation((*before.messages, *said), before.tools)
            try:
                conversation_of([message.to_dict() for message in whole.messages], tools=list(before.tools))
                if self.template.text(whole).startswith(text):
                    return said
            except UserError:
                continue
        return None

    def _calls(self, answer: Answer) -> Iterator[Message]:
        """The calls of an answer and their results."""
        changes = np.flatnonzero(np.diff(answer.generated)) + 1  # where forced tokens begin and end
        results = iter(answer.results)
        for start, end in zip([0, *changes[1::2]], changes[::2], strict=False):
            turn = spelled(self.tokenizer, answer.ids[start:end].tolist())
            calls = calls_in(turn)
            content = turn.partition(BEGIN)[0].removesuffix("\n")
            yield Message(ASSISTANT, content, tuple(ToolCall(call.name, call.arguments) for call in calls))
            yield from (Message(TOOL, result) for result in islice(results, len(calls)))


def answer_batches(
    answering: Answering,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    numbers: Iterable[int],
    *,
    n_samples: int,
    seed: int,
    autocast: Autocast = nullcontext,
    kernels: DecodeKernels | None = None,
    stopping: Stopping = lambda: False,
) -> Iterator[list[tuple[Prompt, list[Answer]]]]:
    """Yields prompts with their answers, as many as are generated at a time: ``MOST_ROWS`` answers.

    Args:
        numbers: which of the prompts, in this order.
        n_samples: answers to each prompt.
        seed: answer k to prompt i is a function of (seed, i, k).

    Raises:
        UserError: a prompt and its answer may exceed the context.
    """
    was_training, waiting = model.training, iter(numbers)
    model.train(False)
    try:
        while chosen := list(islice(waiting, max(1, MOST_ROWS // n_samples))):
            batch = [prompts[i] for i in chosen]
            seeds = [[derive_seed(seed, "answer", i, k) for k in range(n_samples)] for i in chosen]
            answers = answering.answers(
                model, batch, seeds=seeds, autocast=autocast, kernels=kernels, stopping=stopping
            )
            yield [(prompt, answers[i * n_samples : (i + 1) * n_samples]) for i, prompt in enumerate(batch)]
    finally:
        model.train(was_training)


def answer_metrics(
    answering: Answering,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    n_samples: int,
    seed: int,
    rewards: Rewards | None = None,
    autocast: Autocast = nullcontext,
    kernels: DecodeKernels | None = None,
    progress: Callable[[int], None] | None = None,
    stopping: Stopping = lambda: False,
) -> dict[str, float]:
    """How a model answers prompts whose right answers are known.

    Args:
        n_samples: answers to each prompt.
        seed: answer k to prompt i is a function of (seed, i, k).
        rewards: score the answers with these, too; None: do not.
        progress: called with the number of answers so far.

    Returns:
        For each family of tasks, ``task/<family>/exact``, the share of right answers that were ended by their stop
        token; ``ended`` and ``tool_rate``, the shares that were ended and that called a tool; ``tokens``, the mean
        number of generated tokens; and, with several samples, ``pass@<n_samples>``, the share of prompts of which one
        answer is right. ``task/exact`` and ``task/ended`` are the shares of all answers. With ``rewards``, ``reward``
        is the mean of their weighted sum and ``reward_<name>`` that of one of them.

    Raises:
        UserError: a prompt and its answer may exceed the context.
    """
    batches = answer_batches(
        answering,
        model,
        prompts,
        range(len(prompts)),
        n_samples=n_samples,
        seed=seed,
        autocast=autocast,
        kernels=kernels,
        stopping=stopping,
    )
    found: dict[str, list[list[tuple[bool, Completion]]]] = {}
    asked: list[Prompt] = []
    completed: list[Completion] = []
    for batch in batches:
        for prompt, answers in batch:
            completions = [answering.completion(each) for each in answers]
            judged = [(each.ended and prompt.accepts(each.text), each) for each in completions]
            found.setdefault(prompt.problem.family if prompt.problem else "", []).append(judged)
            asked += [prompt] * n_samples
            completed += completions
        if progress is not None:
            progress(len(completed))
    metrics: dict[str, float] = {}
    for family, groups in found.items():
        name = f"task/{family}/" if family else "task/"
        metrics |= {f"{name}{key}": value for key, value in _shares(groups, n_samples).items()}
    if set(found) != {""}:
        everything = _shares([judged for groups in found.values() for judged in groups], n_samples)
        metrics |= {f"task/{key}": value for key, value in everything.items()}
    if rewards is not None:
        scores = rewards.scores(asked, completed)
        named = {"reward" + (f"_{name}" if name else ""): each for name, each in scores.items()}
        metrics |= {name: math.fsum(each) / len(each) for name, each in named.items()}
    return metrics


def _shares(groups: Sequence[Sequence[tuple[bool, Completion]]], n_samples: int) -> dict[str, float]:
    every = [each for judged in groups for each in judged]
    shares = {
        "exact": sum(right for right, _ in every) / len(every),
        "ended": sum(completion.ended for _, completion in every) / len(every),
        "tool_rate": sum(completion.calls > 0 for _, completion in every) / len(every),
        "tokens": sum(completion.tokens for _, completion in every) / len(every),
    }
    if n_samples > 1:
        shares[f"pass@{n_samples}"] = sum(any(right for right, _ in judged) for judged in groups) / len(groups)
    return shares
