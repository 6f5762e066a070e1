"""Documents within windows, against a loop over the tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import bin_corpus, make_split, text_corpus
from tinyllm.data.documents import document_ids, document_lengths
from tinyllm.data.loader import eval_batches
from tinyllm.data.prepare import prepare
from tinyllm.data.sampler import Sampler
from tinyllm.data.token_data import Split
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.ids import IdsTrainer

EOT = 3


@pytest.fixture
def split(tmp_path: Path) -> Split:
    split = make_split(tmp_path, np.random.default_rng(0).integers(0, 8, 400))
    split.eot_id = EOT
    return split


def numbered(inputs: list[int]) -> list[int]:
    """Each token's document: a new one begins at every end-of-text token."""
    numbers, number = [], 0
    for token in inputs:
        number += token == EOT
        numbers.append(number)
    return numbers


def test_training_and_evaluation_windows_number_their_documents(split: Split) -> None:
    batches = [Sampler(split, seq_len=20, seed=1).batch(np.arange(30))]
    batches += eval_batches(split, seq_len=20, batch_size=7, stride=5)
    for batch in batches:
        assert batch.doc_ids is not None
        assert batch.doc_ids.tolist() == [numbered(row) for row in batch.inputs.tolist()]


def test_without_an_end_of_text_token_there_are_no_documents(tmp_path: Path) -> None:
    split = make_split(tmp_path, np.arange(100))
    assert Sampler(split, seq_len=20, seed=1).batch(np.arange(3)).doc_ids is None
    assert document_ids(torch.zeros(2, 3), None) is None
    assert document_lengths(Sampler(split, seq_len=20, seed=1), 10) == {10: 4}


def test_lengths_are_those_of_the_documents_in_the_first_windows(split: Split) -> None:
    sampler, counts = Sampler(split, seq_len=20, seed=1), dict[int, int]()
    for inputs in sampler.batch(np.arange(sampler.windows_per_epoch)).inputs[:, :15].tolist():
        numbers = numbered(inputs)
        for number in set(numbers):
            counts[numbers.count(number)] = counts.get(numbers.count(number), 0) + 1
    assert document_lengths(sampler, 15) == counts


def test_prepared_data_know_what_ends_a_document(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a", "b", "c"):
        (texts / f"{name}.txt").write_text(name * 50)
    data = prepare(text_corpus(texts, packing="best_fit"), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert (data.train.eot_id, data.val.eot_id, data.train.packing) == (256, 256, "best_fit")
    again = prepare(text_corpus(texts), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert (again.path, again.train.packing) == (data.path, "concat")
    np.random.default_rng(0).integers(0, 9, 300).astype(np.uint16).tofile(tmp_path / "ids.bin")
    ids = prepare(bin_corpus(tmp_path / "ids.bin", eot_id=8), IdsTrainer(), cache_dir=tmp_path / "cache")
    assert ids.train.eot_id == 8
