"""``dataset=tasks`` as prepared data: its splits, its masks, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from tinyllm.data.chat.rows import ConversationData
from tinyllm.data.chat.template import Roles
from tinyllm.data.tasks.corpus import TaskCorpus
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer

SETTINGS: dict[str, Any] = {
    "families": ["arithmetic", "words"],
    "n_train": 60,
    "n_val": 30,
    "seed": 0,
    "tool": "python_expression",
    "tool_share": 1.0,
    "short_share": 0.5,
    "unseen_wording": False,
    "too_long": "error",
}


def corpus(**changed: Any) -> TaskCorpus:
    return TaskCorpus(**SETTINGS | changed, chat_template=Roles())


def prepared(made: TaskCorpus) -> ConversationData:
    trainer = ByteTrainer(special_tokens="auto", match_special=False)
    trainer.reserve(made.special_tokens)
    return made.prepare(trainer)


def test_splits() -> None:
    made = corpus()
    made.check()
    data, again = prepared(made), prepared(corpus())
    assert data.fingerprints() == again.fingerprints()
    assert (data.train.n_conversations, data.val.n_conversations) == (60, 30)
    assert prepared(corpus(seed=1)).fingerprints()["val"] != data.fingerprints()["val"]
    assert prepared(made.without_training()).fingerprints()["val"] == data.fingerprints()["val"]
    test = prepared(made.for_test())
    assert test.fingerprints()["train"] == data.fingerprints()["train"]
    assert test.fingerprints()["val"] != data.fingerprints()["val"]
    sides = [
        {prompt.problem.key for prompt in made.prompts(side) if prompt.problem} for side in ("train", "val", "test")
    ]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]


def test_the_result_of_a_tool_is_no_target() -> None:
    """The targets of every conversation are its calls and its answer, the stop tokens included; nothing else."""
    made = corpus()
    data = prepared(made)
    for number, conversation in enumerate(made.conversations()):
        span = slice(data.train.starts[number], data.train.starts[number + 1])
        said = data.tokenizer.decode(data.train.ids[span][data.train.is_target[span]].tolist())
        (call,) = conversation.messages[1].tool_calls
        assert said == call.name + str(call.arguments) + conversation.messages[-1].content
        assert int(data.train.is_target[span].sum()) == len(said.encode()) + 4, "<tool_call> <sep> </tool_call> <eos>"
    assert np.count_nonzero(data.train.is_target) < data.train.n_tokens / 1.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_train": 0}, r"dataset.n_train=0"),
        ({"n_val": 10**9}, r"dataset.n_val=1000000000"),
        ({"families": ["sums"]}, "unknown family sums"),
        ({"short_share": 2.0}, r"dataset.short_share=2.0"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus(**changed)


def test_prompts_are_generated_when_asked_for() -> None:
    made = corpus(n_train=10**7)
    train, val = made.prompt_splits()
    assert (len(train), len(val)) == (10**7, 30)
    assert train[10**7 - 1] == made.tasks.prompt("train", 10**7 - 1) == train[-1]
    assert list(val)[3:5] == val[3:5] == [made.tasks.prompt("val", 3), made.tasks.prompt("val", 4)]
    assert list(made.for_test().prompt_splits()[1]) == list(made.prompts("test"))
    with pytest.raises(IndexError):
        val[30]
