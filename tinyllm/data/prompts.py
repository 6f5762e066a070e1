"""Prompts: conversations that wait for an answer, and what is known about the right one."""

from dataclasses import dataclass

from tinyllm.data.chat.messages import Conversation
from tinyllm.data.tasks.answers import answer_in
from tinyllm.data.tasks.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation that ends before the answer.

    Attributes:
        conversation: what the model reads.
        name: where it comes from, for error messages, such as ``prompts.jsonl:3``.
        answer: the right answer; None: the data have none.
        problem: the generated problem, which knows all its right answers; None: it was not generated.
    """

    conversation: Conversation
    name: str
    answer: str | None = None
    problem: Problem | None = None

    def accepts(self, reply: str) -> bool:
        """Whether a reply is right: it is the answer, or one of the sentences of ``answers`` around it."""
        if self.problem is not None:
            return self.problem.accepts(answer_in(reply))
        return self.answer is not None and self.answer.strip() in (reply.strip(), answer_in(reply))
