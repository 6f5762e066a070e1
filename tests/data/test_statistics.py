"""Statistics of prepared data against counts by hand."""

import json
from collections import Counter

import numpy as np
import pytest

from tests.data.conftest import make_split
from tests.support.fixtures import Call
from tinyllm.data import statistics
from tinyllm.data.statistics import as_json, statistics_of
from tinyllm.data.token_data import TokenData
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTokenizer

TEXTS = ["abc" * 5, "", "é" * 3, "abc" * 5, "x", "word " * 9, "abc" * 5, "q" * 40]


@pytest.mark.parametrize("block", [3, 2**20])
def test_against_the_documents(prepared, block: int, monkeypatch) -> None:
    """Documents of the training split, read back, give the same figures; whatever the size of a block."""
    monkeypatch.setattr(statistics, "BLOCK", block)
    data = prepared(*TEXTS, trainer=CharTrainer())
    found = statistics_of(data)
    ids = data.train.read(0, data.train.n_tokens).tolist()
    documents, tokenizer = [], data.tokenizer
    while ids:
        end = ids.index(tokenizer.eot_id)
        documents.append(tokenizer.decode(ids[:end]))
        ids = ids[end + 1 :]
    lengths = sorted(map(len, documents))
    assert found.train.documents == len(documents)
    assert found.val.documents == data.val.read(0, data.val.n_tokens).tolist().count(tokenizer.eot_id)
    assert found.train.text_bytes == sum(len(text.encode()) for text in documents)
    assert found.train.bytes_per_token == found.train.text_bytes / data.train.n_tokens
    assert found.duplicates == pytest.approx(1 - len(set(documents)) / len(documents))
    assert (found.lengths["p0"], found.lengths["p100"]) == (lengths[0], lengths[-1])
    assert found.lengths["mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert found.lengths["p50"] == lengths[(len(lengths) - 1) // 2]
    assert found.histogram == dict(sorted(Counter(2 ** length.bit_length() - 1 for length in lengths).items()))
    counts = Counter("".join(documents)) + Counter({"<|endoftext|>": len(documents)})
    shares = {token: count / data.train.n_tokens for token, count in counts.items()}
    assert dict(found.frequent) == pytest.approx(shares)
    assert [share for _, share in found.frequent] == sorted(shares.values(), reverse=True)
    assert "".join(found.samples[0]).startswith(documents[0][:48] + "<|endoftext|>"[:13] * (len(documents[0]) < 48))
    json.dumps(as_json(found))


def test_rows_of_numbers(tmp_path) -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 7, 7]])
    train, val = (make_split(tmp_path, part.ravel(), 3, name) for part, name in ((rows, "train"), (rows[:1], "val")))
    found = statistics_of(TokenData(train, val, IdsTokenizer(vocab_size=8), [], tmp_path, "f", 1))
    assert (found.train.documents, found.val.documents, found.duplicates) == (4, 1, 0.25)
    assert found.histogram == {3: 4}
    assert found.train.text_bytes is None and found.train.unknown is None
    assert found.frequent[0] == ("7", 0.25)
    assert found.samples[0][:3] == ["1", "2", "3"]


def test_the_command(tmp_path, call: Call) -> None:
    file = tmp_path / "text.txt"
    file.write_text("some words\n" * 200)
    settings = ("dataset=text", f"dataset.path={file}", "tokenizer=byte")
    shown = call("prepare", *settings, "--stats", TINYLLM_CACHE=str(tmp_path / "cache"))
    assert shown.code == 0 and shown.err == ""
    assert "bytes per token" in shown.out and "sample 3: " in shown.out and "some words\\n" not in shown.out
    assert "s|o|m|e| |w|o|r|d|s|\\n|" in shown.out
    listed = json.loads(call("prepare", *settings, "--stats", "--json", TINYLLM_CACHE=str(tmp_path / "cache")).out)
    assert listed["stats"]["train"]["tokens"] == listed["train tokens"]
    assert sum(count for _, count in listed["stats"]["histogram"]) == listed["stats"]["train"]["documents"] == 1
    plain = json.loads(call("prepare", *settings, "--json", TINYLLM_CACHE=str(tmp_path / "cache")).out)
    assert "stats" not in plain
