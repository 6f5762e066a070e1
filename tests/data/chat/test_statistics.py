"""Statistics of conversations, counted by hand."""

import pytest

from tests.support.chats import write_records
from tinyllm.data.chat.corpus import ConversationCorpus
from tinyllm.data.chat.rows import ConversationData
from tinyllm.data.chat.template import Roles
from tinyllm.data.statistics import as_json, statistics_of
from tinyllm.tokenizers.byte import ByteTrainer

CALL = {"function": {"name": "calc", "arguments": "1+1"}}


def turns(*texts: str) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ConversationData:
    folder = tmp_path_factory.mktemp("chats")
    called = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2"},
    ]
    train = [turns("Hi", "Yo", "So", "No"), turns("Hi", "Yo", "So", "No"), {"messages": called}, turns("é", "x" * 200)]
    path = write_records(folder / "train.jsonl", train)
    val = write_records(folder / "val.jsonl", [turns("Ho", "ab")])
    given = {"val_path": str(val), "val_fraction": 0.1, "too_long": "error"}
    corpus = ConversationCorpus(path=str(path), chat_template=Roles(), **given)  # type: ignore[arg-type]
    trainer = ByteTrainer(special_tokens="auto")
    trainer.reserve(corpus.special_tokens)
    return corpus.prepare(trainer)


def test_conversations_turns_and_targets_are_counted(data: ConversationData) -> None:
    found = statistics_of(data)
    # <bos><user>Hi<eos><assistant>Yo<eos><user>So<eos><assistant>No<eos>: 17 tokens, 6 of them targets
    # <bos><user>1+1<eos><assistant> and, said in two parts, <tool_call>calc<sep>1+1</tool_call> and It is 2<eos>
    lengths = [17, 17, 7 + 10 + 3 + 8, 6 + 201]
    assert (found.train.documents, found.train.tokens) == (4, sum(lengths))
    assert (found.train.turns, found.train.targets) == (2 + 2 + 2 + 1, 6 + 6 + 10 + 8 + 201)
    assert found.train.text_bytes == 8 + 8 + 3 + 4 + 3 + 1 + 7 + 2 + 200
    assert (found.val.documents, found.val.turns, found.val.targets) == (1, 1, 3)
    assert found.duplicates == 0.25 and found.lengths["p100"] == 207
    assert found.left_out == {128: 1, 256: 0}
    assert found.samples[0][:3] == ["<bos>", "<user>", "H"]


def test_json_has_what_is_shown(data: ConversationData) -> None:
    told = as_json(statistics_of(data))
    assert told["left_out"] == [[128, 1], [256, 0]] and told["train"]["turns"] == 7
