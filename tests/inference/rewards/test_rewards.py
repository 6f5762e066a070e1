"""Rewards: what each gives, what none is fooled by, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.models import options
from tinyllm.config.build import build
from tinyllm.config.option_files import conf_dir
from tinyllm.data.chat.messages import USER, Conversation, Message
from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.answers import SENTENCES
from tinyllm.data.tasks.task_set import FAMILIES, TaskSet
from tinyllm.errors import UserError
from tinyllm.inference.rewards.base import Completion, Reward, Rewards
from tinyllm.inference.rewards.correct import Exact, Expression
from tinyllm.inference.rewards.style import Format, Length, ToolCost
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.utils.yaml_files import read_yaml

LIMITS: Any = {"tokenizer": ByteTokenizer(), "max_new_tokens": 4}
TASKS = TaskSet(families=list(FAMILIES), seed=3, tool=None, tool_share=0.0, short_share=1.0)


def asked(answer: str | None) -> Prompt:
    return Prompt(conversation=Conversation((Message(USER, "6 times 7?"),)), name="prompts.jsonl:3", answer=answer)


def said(text: str, *, ended: bool = True, tokens: int = 10, calls: int = 0) -> Completion:
    return Completion(text=text, tokens=tokens, ended=ended, calls=calls)


def score(reward: Reward, text: str, answer: str | None = "42", **changed: object) -> float:
    (value,) = reward.scores([asked(answer)], [said(text, **changed)])  # type: ignore[arg-type]
    return value


def test_exact() -> None:
    reward = Exact(weight=1.0)
    for right in ("42", " 42\n", *(frame.format("42") for frame in SENTENCES)):
        assert score(reward, right) == 1
    for wrong in ("", "4", "42 43", "42 or 43", "0 1 2 42", "The answer is 41. The answer is 42.", "answer", "*", ".*"):
        assert score(reward, wrong) == 0
    assert score(reward, "42", ended=False) == 0, "cut off by a limit"
    assert score(reward, "", answer="") == 1


def test_expression() -> None:
    reward = Expression(weight=1.0)
    for right in ("42", "6*7", "42.0", "It is 84/2.", "40 + 2"):
        assert score(reward, right) == 1
    for wrong in ("", "x", "41", "[42]", "'42'", "__import__('os')", "6*7 or 0 if 0 else 1", "9**9**9"):
        assert score(reward, wrong) == 0
    assert score(reward, "1 + 1", answer="no expression") == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_generated_problems(name: str) -> None:
    tasks = TaskSet(families=[name], seed=1, tool=None, tool_share=0.0, short_share=1.0)
    prompts = [tasks.prompt("train", number) for number in range(40)]
    right = [said(prompt.answer or "") for prompt in prompts]
    others = [*right[1:], said("")]
    assert Exact(weight=1.0).scores(prompts, right) == [1.0] * 40
    assert sum(Exact(weight=1.0).scores(prompts, others)) < 12, "few problems in a row share their answer"
    if name == "expressions":
        assert Expression(weight=1.0).scores(prompts, right) == [1.0] * 40


def test_style() -> None:
    assert score(Format(weight=1.0, pattern=r"-?\d+"), " 42 ") == 1
    assert score(Format(weight=1.0, pattern=r"-?\d+"), "42!") == 0
    assert score(Format(weight=1.0, pattern=r"-?\d+"), "42", ended=False) == 0
    length = Length(weight=1.0, target=10)
    assert [score(length, "", tokens=n) for n in (1, 10, 15, 30)] == [0, 0, -0.5, -2]
    assert [score(ToolCost(weight=1.0), "", calls=n) for n in (0, 1, 3)] == [0, -1, -3]


class Fixed(Reward):
    def __init__(self, *values: float) -> None:
        super().__init__(weight=2.0)
        self.values = list(values)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return self.values


def test_the_weighted_sum() -> None:
    rewards = Rewards({"exact": Exact(weight=1.0), "tool_cost": ToolCost(weight=0.15), "fixed": Fixed(0.5, 1)})
    scores = rewards.scores([asked("42")] * 2, [said("42", calls=1), said("41")])
    assert scores == {"exact": [1, 0], "tool_cost": [-1, 0], "fixed": [0.5, 1], "": [1 - 0.15 + 1, 2]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((float("nan"),), r"the reward is not a finite number \(reward.own=nan\): for the prompt prompts.jsonl:3"),
        ((float("inf"),), "not a finite number"),
        ((), r"the reward gave 0 numbers for 1 completions \(reward.own=Fixed\)"),
        ((1.0, 2.0), "2 numbers for 1 completions"),
    ],
)
def test_wrong_rewards_of_ones_own(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rewards({"own": Fixed(*values)}).scores([asked("42")], [said("42")])


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="no reward"):
        Rewards({})
    with pytest.raises(UserError, match=r"prompt has no answer \(prompts.jsonl:3\): reward=exact compares"):
        Rewards({"exact": Exact(weight=1.0)}).check([asked("1"), asked(None)], **LIMITS)
    Rewards({"tool_cost": ToolCost(weight=1.0)}).check([asked(None)], **LIMITS)
    for pattern, message in (("(", "not a pattern"), (".*", "matches an empty answer"), ("", "empty answer")):
        with pytest.raises(UserError, match=message):
            Format(weight=1.0, pattern=pattern)
    with pytest.raises(UserError, match=r"reward.length.target=0"):
        Length(weight=1.0, target=0)
    for weight in (0.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"not a weight \(reward.tool_cost.weight"):
            ToolCost(weight=weight)


@pytest.mark.parametrize("name", options("reward"))
def test_the_options_are_built(name: str) -> None:
    node = read_yaml(conf_dir() / "reward" / f"{name}.yaml")
    if "???" in node.values():  # reward=model, which reads a run
        with pytest.raises(UserError, match=f"value missing \\(reward.{name}.run"):
            build(node, path=f"reward.{name}")
    else:
        assert isinstance(build(node, path=f"reward.{name}"), Reward)
