"""Pairs of a model's own answers: the best against the worst, as a file with the very ids that were sampled."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.inference.test_answering import Knowing, tokenizer_of
from tinyllm.data.chat.messages import ASSISTANT, TOOL, USER, Conversation, Message, ToolCall
from tinyllm.data.chat.template import ChatML, ChatTemplate, Roles
from tinyllm.data.preferences.corpus import encode_pair
from tinyllm.data.preferences.records import parse_preference
from tinyllm.data.prompts import Prompt
from tinyllm.inference.answering import Answering
from tinyllm.inference.pairing import AnswerPair, Candidate, Tally, best_and_worst, find_pairs
from tinyllm.inference.rewards.base import Completion, Rewards
from tinyllm.inference.rewards.correct import Exact
from tinyllm.inference.rewards.style import Length
from tinyllm.inference.tools.expression import PythonExpression
from tinyllm.tokenizers import Tokenizer

QUESTION = Prompt(conversation=Conversation((Message(USER, "6 times 7?"),)), name="here:1", answer="42")
CALL = ToolCall("python_expression", "6*7")
RIGHT = (Message(ASSISTANT, "Well: ", (CALL,)), Message(TOOL, "42"), Message(ASSISTANT, "42"))
WRONG = (Message(ASSISTANT, "41"),)


class Undecided(Knowing):
    """Goes on as any of the conversations that it knows, each next token of theirs equally likely."""

    def __call__(self, ids_BT: Tensor, *, cache: Any = None) -> Tensor:
        logits_BV = torch.full((len(ids_BT), self.vocab_size), -1e9)
        for row, (text, ids) in enumerate(zip(cache.texts, ids_BT.tolist(), strict=True)):
            text.extend(ids)
            nexts = [known[len(text)] for known in self.known if known[: len(text)] == text and len(known) > len(text)]
            logits_BV[row, nexts or [self.otherwise]] = 0.0
        return logits_BV[:, None].expand(-1, ids_BT.shape[1], -1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()


def made(template: ChatTemplate, tokenizer: Tokenizer, texts: Sequence[list[int]], **settings: Any) -> Any:
    tally = Tally()
    answering = Answering(
        tokenizer=tokenizer, template=template, tool=PythonExpression(max_calls=2), max_new_tokens=80, temperature=1.0
    )
    model: Any = Undecided(texts, otherwise=ord("?"), vocab_size=tokenizer.vocab_size)
    found = find_pairs(
        answering, model, [QUESTION], [0], settings["rewards"], tally, n_samples=24, seed=settings["seed"]
    )
    return list(found), tally


def test_the_ids_of_a_pair_are_those_that_were_sampled(tmp_path: Path) -> None:
    """Right with a call, wrong without one, cut off, and a call that the template does not write so."""
    for template in (Roles(), ChatML()):
        tokenizer = tokenizer_of(template)
        said = [Conversation((*QUESTION.conversation.messages, *answer)) for answer in (RIGHT, WRONG)]
        known = [template.render(conversation, tokenizer).ids.tolist() for conversation in said]
        head = template.render(QUESTION.conversation, tokenizer, add_generation_prompt=True).ids.tolist()
        stop = known[1][-1] if template.name == "roles" else tokenizer.special["<|im_end|>"]
        odd = [*head, tokenizer.special["<tool_call>"], *tokenizer.encode("6*7").tolist(), stop]
        endless = [*head, *tokenizer.encode("4" * 90).tolist()]
        rewards = Rewards({"exact": Exact(weight=1.0)})
        pairs, tally = made(template, tokenizer, [*known, odd, endless], rewards=rewards, seed=1)
        (pair,) = pairs
        assert (pair.chosen.messages, pair.rejected.messages) == (RIGHT, WRONG)
        assert (pair.chosen.reward, pair.rejected.reward) == (1.0, 0.0)
        assert (tally.prompts, tally.answers, tally.ties) == (1, 24, 0)
        assert tally.unfinished and tally.unwritable and tally.unfinished + tally.unwritable < 24
        line = json.loads(json.dumps(pair.to_dict()))
        encoded = encode_pair(tokenizer, parse_preference(line, place="pairs:1"), template)
        for side, ids in zip(encoded, known, strict=True):
            assert side.ids.tolist() == ids[: len(side.ids)] and side.ids[-1] == stop
            assert not side.is_target[: len(head)].any() and side.is_target[len(head)]
        assert encoded[0].is_target.sum() < len(encoded[0].ids) - len(head), "the result of the tool is no target"
        again, _ = made(template, tokenizer, [*known, odd, endless], rewards=rewards, seed=1)
        assert again == pairs


def test_equal_rewards_are_a_tie_and_cut_off_answers_take_no_part() -> None:
    template = Roles()
    tokenizer = tokenizer_of(template)
    said = Conversation((*QUESTION.conversation.messages, *WRONG))
    known = template.render(said, tokenizer).ids.tolist()
    head = template.render(QUESTION.conversation, tokenizer, add_generation_prompt=True).ids.tolist()
    endless = [*head, *tokenizer.encode("4" * 90).tolist()]
    pairs, tally = made(
        template, tokenizer, [known, endless], rewards=Rewards({"l": Length(weight=1.0, target=1)}), seed=0
    )
    assert pairs == [] and tally.ties == 1 and 0 < tally.unfinished < 24
    assert tally.scores["l"] == -tally.unfinished * 79 - (24 - tally.unfinished) * 2, "means are of all answers"


def test_the_first_of_the_best_against_the_first_of_the_worst() -> None:
    def candidate(text: str, reward: float) -> Candidate:
        return Candidate(
            messages=(Message(ASSISTANT, text),), completion=Completion(text=text, tokens=1, ended=True), reward=reward
        )

    of = [candidate(*each) for each in (("a", 0.5), ("b", 1.0), ("c", 0.0), ("d", 1.0), ("e", 0.0))]
    assert best_and_worst(QUESTION, of) == AnswerPair(prompt=QUESTION, chosen=of[1], rejected=of[2])
    assert best_and_worst(QUESTION, [candidate("a", 1.0), candidate("a", 2.0)]) is None, "the same text twice"
    assert best_and_worst(QUESTION, of[:1]) is None and best_and_worst(QUESTION, []) is None
