"""Answers with tools through a chat template, by a model that knows some conversations by heart."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tinyllm.data.chat.messages import Conversation
from tinyllm.data.chat.template import ChatML, ChatTemplate, Roles
from tinyllm.data.tasks.task_set import TaskSet
from tinyllm.inference.answering import Answering, answer_metrics
from tinyllm.inference.tools.expression import Calculator, PythonExpression
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.byte import ByteTrainer

TASKS = TaskSet(families=["arithmetic", "words"], seed=4, tool="python_expression", tool_share=1.0, short_share=0.5)


class Memory:
    """The cache of :class:`Knowing`: the ids of each row."""

    def __init__(self, texts: list[list[int]], *, max_len: int) -> None:
        self.texts, self.max_len = texts, max_len

    @property
    def lengths_B(self) -> Tensor:
        return torch.tensor([len(text) for text in self.texts])

    def rows(self, start: int, stop: int) -> "Memory":
        return Memory(self.texts[start:stop], max_len=self.max_len)

    def copy_row(self, source: int, target: int) -> None:
        self.texts[target][:] = self.texts[source]

    def copy_all(self, smaller: "Memory") -> None:
        for mine, its in zip(self.texts, smaller.texts, strict=True):
            mine[:] = its


class Knowing:
    """A model that goes on as the conversations do that it knows, and says ``otherwise`` after anything else."""

    max_seq_len = 400
    training = False
    device = torch.device("cpu")

    def __init__(self, known: Sequence[list[int]], *, otherwise: int, vocab_size: int) -> None:
        self.known, self.otherwise, self.vocab_size = known, otherwise, vocab_size

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def make_cache(self, batch_size: int, max_len: int) -> Memory:
        return Memory([[] for _ in range(batch_size)], max_len=max_len)

    def __call__(self, ids_BT: Tensor, *, cache: Any = None) -> Tensor:
        following = []
        for text, ids in zip(cache.texts, ids_BT.tolist(), strict=True):
            text.extend(ids)
            following.append(next((k[len(text)] for k in self.known if k[: len(text)] == text), self.otherwise))
        return torch.tensor(following)[:, None, None].expand(-1, ids_BT.shape[1], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return one_hot(hidden[..., 0], self.vocab_size) * 1000.0


def tokenizer_of(template: ChatTemplate) -> Tokenizer:
    trainer = ByteTrainer(special_tokens="auto", match_special=False)
    trainer.reserve([*template.special_tokens, "<|endoftext|>"])
    return trainer.train([])


def knowing(template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> Any:
    known = [template.render(conversation, tokenizer).ids.tolist() for conversation in conversations]
    return Knowing(known, otherwise=ord("?"), vocab_size=tokenizer.vocab_size)


@pytest.mark.parametrize("template", [Roles(), ChatML()], ids=["roles", "chatml"])
def test_metrics(template: ChatTemplate) -> None:
    """Half of the problems are known by heart; of the others nothing is said that ends."""
    tokenizer = tokenizer_of(template)
    model = knowing(template, tokenizer, [TASKS.conversation("val", i) for i in range(0, 24, 4)])
    answering = Answering(
        tokenizer=tokenizer,
        template=template,
        tool=PythonExpression(max_calls=2),
        max_new_tokens=120,
        temperature=0.0,
    )
    metrics = answer_metrics(answering, model, [TASKS.prompt("val", i) for i in range(24)], n_samples=1, seed=0)
    assert metrics["task/arithmetic/exact"] == metrics["task/arithmetic/ended"] == 0.5
    assert metrics["task/arithmetic/tool_rate"] == 0.5
    assert metrics["task/words/exact"] == metrics["task/words/tool_rate"] == 0
    assert metrics["task/exact"] == metrics["task/ended"] == 0.25
    assert metrics["task/words/tokens"] == 120 > metrics["task/arithmetic/tokens"]


def test_several_samples() -> None:
    template = Roles()
    tokenizer = tokenizer_of(template)
    model = knowing(template, tokenizer, [TASKS.conversation("val", i) for i in range(3)])
    settings = {"tokenizer": tokenizer, "template": template, "max_new_tokens": 60, "temperature": 1.0}
    prompts = [TASKS.prompt("val", i) for i in range(4)]
    metrics = answer_metrics(
        Answering(**settings, tool=PythonExpression(max_calls=2)), model, prompts, n_samples=3, seed=0
    )
    assert metrics["task/pass@3"] == metrics["task/exact"] == 0.75


def test_a_tool_that_is_not_there_and_none() -> None:
    template = Roles()
    tokenizer = tokenizer_of(template)
    model = knowing(template, tokenizer, [TASKS.conversation("val", 0)])
    settings = {"tokenizer": tokenizer, "template": template, "max_new_tokens": 60, "temperature": 0.0}
    prompt = TASKS.prompt("val", 0)
    wrong = Answering(**settings, tool=Calculator(max_calls=2))
    (answer,) = wrong.answers(model, [prompt], seeds=[[0]])
    completion = wrong.completion(answer)
    assert (completion.calls, completion.errors, completion.ended) == (1, 1, False)
    without = Answering(**settings, tool=None)
    (answer,) = without.answers(model, [prompt], seeds=[[0]])
    assert (answer.calls, answer.ended, bool(answer.generated.all())) == (0, False, True)


def test_the_ids_of_an_answer_are_those_of_the_conversation() -> None:
    """What the model writes and what is forced in are the ids that training reads, targets where it writes."""
    template = Roles()
    tokenizer = tokenizer_of(template)
    conversation = TASKS.conversation("val", 1)
    answering = Answering(
        tokenizer=tokenizer, template=template, tool=PythonExpression(max_calls=1), max_new_tokens=80, temperature=0.0
    )
    (answer,) = answering.answers(knowing(template, tokenizer, [conversation]), [TASKS.prompt("val", 1)], seeds=[[0]])
    rendered = template.render(conversation, tokenizer)
    start = len(answering.prompt_ids(TASKS.prompt("val", 1)))
    assert answer.ids.tolist() == rendered.ids[start:].tolist()
    assert answer.generated.tolist() == rendered.is_target[start:].tolist()
    assert answering.completion(answer).text == conversation.messages[-1].content
