"""Files of preferences: what is read, how it is split by prompt and encoded, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.preferences import random_pairs, write_preferences
from tinyllm.data.chat.template import Roles
from tinyllm.data.preferences.corpus import PreferenceCorpus, encode_answer
from tinyllm.data.preferences.pairs import PairData, PairSource
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer


def corpus(path: Path, **settings: Any) -> PreferenceCorpus:
    given: dict[str, Any] = {"val_path": None, "val_fraction": 0.2, "too_long": "error"} | settings
    return PreferenceCorpus(path=str(path), **given)


def prepared(path: Path, **settings: Any) -> PairData:
    return corpus(path, **settings).prepare(ByteTrainer(special_tokens=["<eos>"], match_special=False))


def prompts(data: PairData, name: str) -> set[str]:
    split, found = data.splits(name)[""], set()
    for row in range(2 * split.n_pairs):
        span = slice(split.starts[row], split.starts[row + 1])
        found.add(data.tokenizer.decode(split.ids[span][~split.is_target[span]].tolist()))
    return found


def test_no_prompt_is_on_both_sides_whatever_else_the_files_hold(tmp_path: Path) -> None:
    """The side of a prompt is a function of the prompt: more data, another order or a copy move none."""
    file = write_preferences(tmp_path / "some.jsonl")
    data = prepared(file)
    assert prompts(data, "train") and prompts(data, "val") and not prompts(data, "train") & prompts(data, "val")
    assert data.train.n_pairs + data.val.n_pairs == 40
    lines = file.read_text(encoding="utf-8").splitlines()
    second = [json.loads(line) | {"chosen": "another one"} for line in lines]
    more = [*reversed(lines), *map(json.dumps, second), lines[0]]
    (tmp_path / "more.jsonl").write_text("\n".join(more), encoding="utf-8")
    again = prepared(tmp_path / "more.jsonl")
    assert prompts(again, "val") == prompts(data, "val") and again.train.n_pairs == 2 * data.train.n_pairs


def test_prompts_of_a_validation_file_are_left_out_of_training(tmp_path: Path) -> None:
    file = write_preferences(tmp_path / "some.jsonl")
    held_out = file.read_text(encoding="utf-8").splitlines(keepends=True)[:7]
    (tmp_path / "val.jsonl").write_text("".join(held_out), encoding="utf-8")
    data = prepared(file, val_path=str(tmp_path / "val.jsonl"))
    assert (data.train.n_pairs, data.val.n_pairs) == (33, 7)
    assert data.notes == ["7 training pairs whose prompt is also in validation were left out"]
    with pytest.raises(UserError, match="all training prompts are also in validation"):
        prepared(file, val_path=str(file))


def test_an_answer_ends_with_the_stop_token_and_spelled_tokens_stay_text() -> None:
    tokenizer = ByteTrainer(special_tokens=["<bos>", "<eos>"], match_special=False).train([])
    found = encode_answer(tokenizer, "a<eos>", "b")
    assert tokenizer.eot_id is not None and found.ids[-1] == tokenizer.eot_id
    assert tokenizer.eot_id not in found.ids[:-1]
    assert found.is_target.tolist() == [False] * 6 + [True, True]
    begun = tokenizer.used_by(bos_id=tokenizer.special["<bos>"], adds_bos=True, eos_ids=[])
    assert list(encode_answer(begun, "a", "b").ids).count(tokenizer.special["<bos>"]) == 1
    assert not encode_answer(tokenizer, "", "b").is_target[0], (
        "the first token of an answer is predicted from something"
    )


USER, FIRST, AGAIN = (
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
)
GOOD, BAD = {"role": "assistant", "content": "four"}, {"role": "assistant", "content": "4!"}


def chats(path: Path, *records: dict[str, Any]) -> PairData:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    val = write_preferences(path.with_name("val.jsonl"), n_pairs=1)
    found = corpus(path, val_path=str(val), chat_template=Roles())
    trainer = ByteTrainer(special_tokens="auto", match_special=False)
    trainer.reserve(found.special_tokens)
    return found.prepare(trainer)


def test_of_a_conversation_only_what_differs_is_a_target(tmp_path: Path) -> None:
    """Earlier turns of the assistant belong to the prompt; the stop token belongs to the answer."""
    asked = {"prompt": [USER, FIRST, AGAIN], "chosen": [GOOD], "rejected": [BAD]}
    data = chats(tmp_path / "chats.jsonl", asked)
    for row, answer in enumerate(("four", "4!")):
        span = slice(data.train.starts[row], data.train.starts[row + 1])
        ids, is_target = data.train.ids[span], data.train.is_target[span]
        assert data.tokenizer.decode(ids[is_target].tolist()) == answer
        assert ids[-1] == data.tokenizer.special["<eos>"] and is_target[-1]
        assert list(ids).count(data.tokenizer.special["<bos>"]) == 1
    whole = {"chosen": [USER, FIRST, AGAIN, GOOD], "rejected": [USER, FIRST, AGAIN, BAD]}
    as_text = {"prompt": [USER, FIRST, AGAIN], "chosen": "four", "rejected": BAD}
    for same in (whole, as_text, whole | {"prompt": [USER, FIRST, AGAIN]}):
        assert chats(tmp_path / "same.jsonl", same).train.fingerprint == data.train.fingerprint


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"chosen": [USER, GOOD], "rejected": [AGAIN, BAD]},
            "the chosen and the rejected answer have different prompts",
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "the chosen answer equals the rejected one"),
        ({"prompt": [USER], "chosen": [GOOD, AGAIN], "rejected": [BAD]}, "`chosen` does not end with the assistant"),
        ({"prompt": [USER], "chosen": [GOOD, BAD], "rejected": [BAD]}, "two assistant turns in a row"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "`chosen` is not a list of messages"),
        ({"prompt": [USER], "chosen": [GOOD]}, "no field `rejected`"),
    ],
)
def test_conversations_that_are_no_pair_are_refused(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{message} \(.*chats.jsonl:1"):
        chats(tmp_path / "chats.jsonl", record)


def test_every_pair_is_read_once_per_epoch_in_a_new_order() -> None:
    source = PairSource(random_pairs(23), seq_len=12, seed=3)
    epochs = source.pairs(np.arange(46)).reshape(2, 23)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(23))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    batch = source.batch(np.arange(4, 8))
    assert batch.extra["pair"].tolist() == epochs[0][4:8].tolist() and batch.sequences == 8
    assert batch.inputs.shape[1] % 8 == 0


def test_pairs_that_are_too_long_are_refused_or_dropped(tmp_path: Path) -> None:
    """A pair fits if its longer row does: the last token is a target only."""
    file = write_preferences(tmp_path / "some.jsonl")
    train = prepared(file).train
    longest = int(train.longest.max())
    assert len(train.fitting(longest - 1)) == train.n_pairs
    with pytest.raises(UserError, match=rf"a pair of {longest} tokens \(trainer.seq_len={longest - 2}\): "):
        train.fitting(longest - 2)
    dropping = prepared(file, too_long="drop").train
    assert set(dropping.fitting(longest - 2)) == set(np.flatnonzero(train.longest < longest))
    with pytest.raises(UserError, match=r"every pair of the train split is longer.*raise it"):
        dropping.fitting(3)
    few = list(dropping.eval_batches(seq_len=longest, batch_size=4, max_tokens=1))
    assert [batch.sequences for batch in few] == [2], "at least one pair"


def test_parquet_holds_the_same_pairs(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = write_preferences(tmp_path / "some.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "some.parquet")
    assert prepared(tmp_path / "some.parquet").fingerprints() == prepared(file).fingerprints()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"the line is not JSON \(.*bad.jsonl:2, column 2\)"),
        ("[1]", r"not a preference \(.*bad.jsonl:2\): it must be an object"),
        ('{"prompt": "a", "chosen": "b"}', r"no field `rejected` \(.*:2\): its fields are chosen, prompt"),
        ('{"prompt": "a", "chosen": "b", "rejected": " "}', r"`rejected` is empty \(.*:2\)"),
        ('{"prompt": "a", "chosen": 3, "rejected": "c"}', r"`chosen` is not text \(.*:2\)"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', r"the chosen answer equals the rejected one \(.*:2\)"),
    ],
)
def test_what_is_no_preference_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    good = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
    (tmp_path / "bad.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "bad.jsonl")


def test_a_split_without_prompts_is_refused(tmp_path: Path) -> None:
    file = write_preferences(tmp_path / "one.jsonl", n_pairs=1)
    with pytest.raises(UserError, match=r"split is empty \(dataset.val_fraction=0.2\): there are 1 different prompt,"):
        prepared(file)
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="it contains no preferences"):
        corpus(tmp_path / "empty.jsonl").check()
