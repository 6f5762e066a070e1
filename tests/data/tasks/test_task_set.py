"""Task sets: conversations and prompts of one problem, by seed, split and number."""

import pytest

from tinyllm.data.chat.messages import parse_conversation
from tinyllm.data.tasks.answers import SENTENCES, answer_in
from tinyllm.data.tasks.problem import side_of
from tinyllm.data.tasks.task_set import FAMILIES, TaskSet
from tinyllm.errors import UserError
from tinyllm.utils.expressions import evaluate

SETTINGS = {
    "families": ["arithmetic", "words"],
    "seed": 5,
    "tool": "python_expression",
    "tool_share": 0.5,
    "short_share": 0.3,
}


def made(**changed: object) -> TaskSet:
    return TaskSet(**SETTINGS | changed)  # type: ignore[arg-type]


def test_a_conversation_is_a_pure_function_of_its_number() -> None:
    first = [made().conversation("train", i) for i in range(40)]
    again = made()
    assert [again.conversation("train", i) for i in reversed(range(40))] == first[::-1]
    assert [made(seed=6).conversation("train", i) for i in range(40)] != first
    assert [made().conversation("val", i) for i in range(40)] != first


def test_conversations() -> None:
    tasks, called, short = made(), 0, 0
    for i in range(200):
        problem, prompt, conversation = tasks.problem("val", i), tasks.prompt("val", i), tasks.conversation("val", i)
        assert side_of(problem.key) == "val" and problem.family == ("arithmetic", "words")[i % 2]
        assert parse_conversation(conversation.to_dict()) == conversation
        assert prompt.conversation.messages == conversation.messages[:1] and prompt.answer == problem.answer
        last = conversation.messages[-1].content
        assert prompt.accepts(last) and answer_in(last) == problem.answer
        short += last == problem.answer
        if len(conversation.messages) > 2:
            _, asked, result, _ = conversation.messages
            (call,) = asked.tool_calls
            assert (
                call.name == "python_expression" and evaluate(str(call.arguments)) == result.content == problem.answer
            )
            called += 1
    assert 70 < called < 130
    assert 38 < short < 82


def test_shares() -> None:
    assert all(len(made(tool_share=0.0).conversation("train", i).messages) == 2 for i in range(30))
    assert all(len(made(tool_share=1.0).conversation("train", i).messages) == 4 for i in range(30))
    assert all(len(made(tool=None).conversation("train", i).messages) == 2 for i in range(30))
    assert all(len(made(families=["lookups"]).conversation("train", i).messages) == 2 for i in range(30)), (
        "no tool helps"
    )
    frames = {made(short_share=0.0).conversation("train", i).messages[-1].content.partition(" ")[0] for i in range(90)}
    assert frames == {frame.partition(" ")[0] for frame in SENTENCES}


def test_wordings_that_are_never_trained_on() -> None:
    unseen = {made(unseen=True).problem("test", i).question for i in range(50)}
    assert not unseen & {made().problem("test", i).question for i in range(400)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"families": ["sums"]}, r"unknown family sums .*: a list of arithmetic, words, lookups, expressions"),
        ({"families": []}, "not a list of families"),
        ({"families": ["words", "words"]}, "each once"),
        ({"tool_share": 1.5}, r"not a share \(dataset.tool_share=1.5\)"),
        ({"short_share": float("nan")}, "not a share"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**changed)
    assert set(FAMILIES) == {"arithmetic", "words", "lookups", "expressions"}
