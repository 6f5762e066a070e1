"""dataset=chat: split by prompt, rows with their targets, the order of training, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.chats import record, write_records
from tinyllm.data.batch import row_length
from tinyllm.data.chat.corpus import ConversationCorpus, key_of
from tinyllm.data.chat.rows import BUNDLE, ConversationData, ConversationSource, ConversationSplit
from tinyllm.data.chat.template import ChatTemplate, Rendered, Roles
from tinyllm.data.sample_span import SampleSpan
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.pretrained import FixedTrainer

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}


def opened(path: Path, **settings: Any) -> ConversationCorpus:
    given = {"val_path": None, "val_fraction": 0.1, "too_long": "error", "chat_template": Roles()} | settings
    return ConversationCorpus(path=str(path), **given)


def prepared(path: Path, **settings: Any) -> ConversationData:
    corpus = opened(path, **settings)
    corpus.check()
    trainer = CharTrainer(special_tokens="auto")
    trainer.reserve(corpus.special_tokens)
    return corpus.prepare(trainer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ConversationData:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    return prepared(write_records(file, [record(seed) for seed in range(120)]))


def test_no_prompt_is_on_both_sides_and_each_conversation_on_one(tmp_path: Path) -> None:
    records = [record(seed % 40) for seed in range(100)]  # many prompts occur two or three times
    corpus = opened(write_records(tmp_path / "c.jsonl", records))
    train, val, _ = corpus.split()
    assert len(train) + len(val) == 100 and 5 <= len(val) <= 15
    assert not {key_of(one) for one in train} & {key_of(one) for one in val}
    write_records(tmp_path / "c.jsonl", records[::-1])
    assert {key_of(one) for one in corpus.split()[1]} == {key_of(one) for one in val}, "whatever the order of the file"


def test_given_validation_leaves_its_prompts_out_of_training(tmp_path: Path) -> None:
    write_records(tmp_path / "c.jsonl", [record(seed) for seed in range(20)])
    val = write_records(tmp_path / "v.jsonl", [record(seed) for seed in range(5)])
    data = prepared(tmp_path / "c.jsonl", val_path=str(val))
    assert data.val.n_conversations == 5 and data.train.n_conversations == 15
    assert data.notes == ["5 training conversations whose prompt is also in validation were left out."]
    with pytest.raises(UserError, match="all training conversations are also in validation"):
        prepared(val, val_path=str(tmp_path / "c.jsonl"))


def test_rows_are_the_rendered_conversations_shifted_once(data: ConversationData) -> None:
    split = data.train
    rows = np.array([3, 0, 7])
    batch = split.batch(rows, seq_len=4000)
    assert batch.inputs.shape[1] % 8 == 0 and batch.counted == split.targets[rows].sum() > 0
    for row, inputs, targets in zip(rows, batch.inputs.numpy(), batch.targets.numpy(), strict=True):
        span = slice(split.starts[row], split.starts[row + 1])
        ids, is_target = split.ids[span], split.is_target[span]
        n = len(ids) - 1
        assert (inputs[:n] == ids[:-1]).all() and (inputs[n:] == 0).all()
        assert (targets[:n][is_target[1:]] == ids[1:][is_target[1:]]).all()
        assert (targets[:n][~is_target[1:]] == IGNORE).all() and (targets[n:] == IGNORE).all()
        stop = data.tokenizer.special["<eos>"]
        assert targets[n - 1] == stop, "the stop token is a target"
        assert list(ids).count(data.tokenizer.special["<bos>"]) == 1


def test_rows_have_few_lengths_and_none_beyond_the_context() -> None:
    lengths = {length: row_length(length, 500) for length in range(1, 501)}
    assert all(length <= row <= 500 for length, row in lengths.items())
    assert all(row - length < max(8, length / 8) for length, row in lengths.items())
    assert len(set(lengths.values())) == 32 and row_length(500, 500) == 500


def test_a_context_that_is_no_multiple_of_eight_is_not_exceeded(data: ConversationData) -> None:
    longest = int(data.val.lengths.max()) - 1
    assert longest % 8, "else the rounding would not matter"
    source = ConversationSource(data.train, seq_len=int(data.train.lengths.max()) - 1, seed=0)
    batch = source.batch(np.arange(source.windows_per_epoch))
    assert batch.inputs.shape[1] == source.seq_len
    batches = list(data.val.eval_batches(seq_len=longest, batch_size=100))
    assert [batch.inputs.shape[1] for batch in batches] == [longest]


def test_each_conversation_once_per_epoch_in_bundles_of_like_length(data: ConversationData) -> None:
    source = ConversationSource(data.train, seq_len=4000, seed=5)
    count = source.windows_per_epoch
    assert count == data.train.n_conversations
    epochs = [source.rows(np.arange(count * epoch, count * (epoch + 1))) for epoch in range(3)]
    assert all(sorted(rows) == list(range(count)) for rows in epochs)
    assert not (epochs[0] == epochs[1]).all()
    again = ConversationSource(data.train, seq_len=4000, seed=5)
    assert (again.rows(np.array([count + 3, 2, count * 2])) == [epochs[1][3], epochs[0][2], epochs[2][0]]).all()
    lengths = data.train.lengths[epochs[0]]
    bundles = lengths[: count // BUNDLE * BUNDLE].reshape(-1, BUNDLE)
    spread = (bundles.max(axis=1) - bundles.min(axis=1)).mean()
    assert spread < 0.6 * (lengths.max() - lengths.min())


def test_batches_of_any_lengths_weigh_the_targets_of_short_answers_like_others() -> None:
    """The mean of the steps' means over their targets, against the mean over all targets of an epoch."""
    lengths = np.random.default_rng(0).integers(3, 120, size=2048)
    rows = [Rendered(np.full(length, 65), np.ones(length, dtype=bool)) for length in lengths]
    grouped = ConversationSplit.of("train", rows, drops_long=False, tokenizer=ByteTokenizer())

    def weight_of_short_answers(split: ConversationSplit) -> float:
        source = ConversationSource(split, seq_len=120, seed=3)
        steps = source.rows(np.arange(2048)).reshape(-1, 32)
        assert sorted(steps.ravel()) == list(range(2048))
        targets, is_short = split.targets[steps], lengths[steps] < 40
        shares = (targets * is_short).sum(1) / targets.sum(1)  # of a step's loss
        return float(shares.mean() / ((targets * is_short).sum() / targets.sum()))

    assert weight_of_short_answers(replace(grouped, group_by_length=False)) == pytest.approx(1, abs=0.05)
    assert weight_of_short_answers(grouped) > 2, "the price of little padding"


def test_long_conversations_are_refused_or_left_out_and_never_cut(tmp_path: Path, data: ConversationData) -> None:
    limit = int(np.median(data.train.lengths))
    count = int((data.train.lengths > limit + 1).sum())
    with pytest.raises(UserError) as caught:
        ConversationSource(data.train, seq_len=limit, seed=0)
    assert f"a conversation of {data.train.lengths.max():,} tokens (trainer.seq_len={limit})" in str(caught.value)
    assert f"{count} of {data.train.n_conversations} conversations" in str(caught.value)
    dropped = prepared(write_records(tmp_path / "c.jsonl", [record(seed) for seed in range(120)]), too_long="drop")
    source = ConversationSource(dropped.train, seq_len=limit, seed=0)
    assert source.windows_per_epoch == data.train.n_conversations - count
    notes = dropped.order_notes({"": source}, SampleSpan(total=1, per_step=1))
    assert notes == [f"{count} conversations are longer than a training sequence and were left out."]
    with pytest.raises(UserError, match=r"all .* conversations of the train split are longer"):
        ConversationSource(dropped.train, seq_len=2, seed=0)


def test_evaluation_reads_every_target_once_and_counts_their_bytes(data: ConversationData) -> None:
    split = data.val
    batches = list(split.eval_batches(seq_len=4000, batch_size=3))
    assert sum(batch.counted for batch in batches) == split.targets.sum()
    texts = [data.tokenizer.decode(split.ids[split.is_target].tolist())]
    assert split.eval_bytes(seq_len=4000) == sum(len(text.encode()) for text in texts)
    few = list(split.eval_batches(seq_len=4000, batch_size=3, max_tokens=2))
    assert sum(batch.sequences for batch in few) == 1
    assert torch.equal(few[0].inputs, split.batch(np.array([0]), seq_len=4000).inputs)


@pytest.mark.parametrize(
    "lines, what",
    [
        (['{"messages": [}'], "the line is not JSON (chats.jsonl:1, column 15)"),
        (['{"text": "a"}'], "no field `messages` (chats.jsonl:1): its fields are text"),
        (["", json.dumps({"messages": [ASK, ASK]})], "two user turns in a row (chats.jsonl:2 message 2)"),
        ([json.dumps({"messages": [ASK]})], "no assistant turn (chats.jsonl:1)"),
        ([""], "it contains no conversations"),
        ([json.dumps({"messages": [ASK, ANSWER]})] * 3, "too few conversations"),
    ],
)
def test_refused_files(lines: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        prepared(Path("chats.jsonl"))
    assert what in str(caught.value)


def test_a_template_that_marks_nothing_of_a_conversation_is_refused(tmp_path: Path) -> None:
    said = "{% generation %}{{ messages[1].content }}<|x|>{% endgeneration %}"
    source = f"{{% if messages[0].content == 'a' and not add_generation_prompt %}}{said}{{% endif %}}"
    write_records(tmp_path / "c.jsonl", [{"messages": [{**ASK, "content": text}, ANSWER]} for text in "abc"])
    with pytest.raises(UserError, match="a conversation without a target"):
        prepared(tmp_path / "c.jsonl", chat_template=ChatTemplate(source))


def test_a_tokenizer_without_the_tokens_of_the_template_is_refused(tmp_path: Path, data: ConversationData) -> None:
    write_records(tmp_path / "c.jsonl", [record(seed) for seed in range(3)])
    corpus = opened(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="writes <bos>, which is no special token of the tokenizer"):
        corpus.prepare(FixedTrainer(CharTrainer().train(["abc"])))
    assert corpus.prepare(FixedTrainer(data.tokenizer)).tokenizer is data.tokenizer
