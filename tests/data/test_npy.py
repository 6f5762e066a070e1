"""Corpus of token ids in .npy files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tinyllm.data.loader import eval_batches, eval_bytes
from tinyllm.data.npy import NpyCorpus
from tinyllm.data.prepare import prepare
from tinyllm.data.sampler import Sampler
from tinyllm.data.token_data import TokenData
from tinyllm.errors import UserError
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTrainer


def corpus(path: Path | str, **changes) -> NpyCorpus:
    return NpyCorpus(**{"path": str(path), "val_path": None, "val_fraction": 0.25} | changes)


def ready(path: Path | str, folder: Path, vocab_size: int | None = None, **changes) -> TokenData:
    return prepare(corpus(path, **changes), IdsTrainer(vocab_size=vocab_size), cache_dir=folder / "cache")


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_are_windows(tmp_path: Path, dtype: type) -> None:
    rows = np.random.default_rng(0).integers(0, 70_000, (40, 9)).astype(dtype)
    data = ready(save(tmp_path / "a.npy", rows), tmp_path)
    assert (data.train.row_length, data.val.row_length) == (9, 9)
    assert data.train.dtype == "uint32"
    assert data.tokenizer.vocab_size == rows.max() + 1
    assert data.tokenizer.eot_id is None
    train = data.train.read(0, data.train.n_tokens).reshape(-1, 9)
    val = data.val.read(0, data.val.n_tokens).reshape(-1, 9)
    assert len(val) == 10
    assert Counter(map(tuple, [*train, *val])) == Counter(map(tuple, rows))
    sampler = Sampler(data.train, seq_len=8, seed=0)
    windows = sampler.windows(np.arange(sampler.windows_per_epoch))
    assert Counter(map(tuple, windows)) == Counter(map(tuple, train))
    targets = [t[t >= 0].tolist() for t in (batch.targets for batch in eval_batches(data.val, seq_len=8, batch_size=1))]
    assert targets == val[:, 1:].tolist()
    assert eval_bytes(data.val) is None


def test_small_numbers_take_two_bytes(tmp_path: Path) -> None:
    data = ready(save(tmp_path / "a.npy", np.arange(60, dtype=np.int64).reshape(10, 6)), tmp_path)
    assert data.train.dtype == "uint16"


def test_equal_rows_stay_together(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(8, dtype=np.int32)[:, None] * np.ones((1, 5), np.int32), 4, axis=0)
    data = ready(save(tmp_path / "a.npy", rows), tmp_path)
    assert not set(data.train.read(0, data.train.n_tokens)) & set(data.val.read(0, data.val.n_tokens))


def test_val_path_may_have_rows_of_a_different_length_and_larger_ids(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", np.arange(20, dtype=np.int32).reshape(4, 5))
    save(tmp_path / "b.npy", 30 + np.arange(14, dtype=np.int64).reshape(2, 7))
    data = ready(tmp_path / "a.npy", tmp_path, val_path=str(tmp_path / "b.npy"))
    assert (data.train.row_length, data.val.row_length) == (5, 7)
    assert data.train.n_tokens == 20
    assert data.tokenizer.vocab_size == 44


def test_vocabulary_that_is_given(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy", np.arange(20, dtype=np.int32).reshape(4, 5))
    assert ready(file, tmp_path, vocab_size=50257).tokenizer.vocab_size == 50257
    with pytest.raises(UserError, match=r"the id 19 is outside the vocabulary of 19 ids \(tokenizer.vocab_size=19\)"):
        ready(file, tmp_path, vocab_size=19)
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=0"):
        ready(file, tmp_path, vocab_size=0)


def test_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", np.arange(20, dtype=np.int32).reshape(4, 5))
    save(tmp_path / "b.npy", np.arange(20, 40, dtype=np.int64).reshape(4, 5))
    data = ready(tmp_path, tmp_path)
    assert data.train.n_tokens + data.val.n_tokens == 40
    save(tmp_path / "c.npy", np.arange(12, dtype=np.int64).reshape(2, 6))
    with pytest.raises(UserError, match=r"different lengths: \[5, 6\]"):
        corpus(tmp_path).check()


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((3, 4)), "has dtype float64"),
        (np.zeros((3, 4), np.int16), "has dtype int16"),
        (np.zeros((3, 4), ">i4"), "has dtype >i4"),
        (np.zeros((3, 4), bool), "has dtype bool"),
        (np.zeros(12, np.int32), r"has shape \(12,\)"),
        (np.zeros((1, 3, 4), np.int32), r"has shape \(1, 3, 4\)"),
        (np.zeros((0, 4), np.int32), "cannot read the array|has no rows"),
        (np.zeros((4, 1), np.int32), "rows have length 1"),
    ],
)
def test_wrong_arrays_are_refused_at_once(tmp_path: Path, array: np.ndarray, what: str) -> None:
    file = save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=what) as caught:
        corpus(file).check()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def objects(file: Path) -> None:
    np.save(file, np.array([[{}, []]], dtype=object), allow_pickle=True)


def archive(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, a=np.zeros((3, 4), np.int32))


def header(text: str):
    """An .npy file with any header, and 64 bytes."""

    def make(file: Path) -> None:
        line = text.encode() + b"\n"
        file.write_bytes(b"\x93NUMPY\x01\0" + len(line).to_bytes(2, "little") + line + bytes(64))

    return make


def truncated(file: Path) -> None:
    np.save(file, np.zeros((30, 40), np.int32))
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda file: file.write_bytes(b""), "the file is empty"),
        (lambda file: file.write_bytes(b"garbage" * 100), "the file is text"),
        (lambda file: file.write_bytes(bytes(range(256))), "the file is binary"),
        (lambda file: file.write_bytes(b"\x93NUMPY"), "cannot read the array"),
        (lambda file: file.write_bytes(b"\x93NUMPY\x09\0"), "cannot read the array"),
        (truncated, "the file is truncated"),
        (objects, "Python objects"),
        (archive, "a NumPy archive|a zip archive"),
        (header("{'descr': '<i4', 'fortran_order': False, 'shape': (1000000, 1000), }"), "the file is truncated"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807, 4), }"), "cannot read"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, 4), }"), "cannot read|no rows"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 'x'), }"), "cannot read"),
        (header("{'descr': '<q9', 'fortran_order': 7, 'shape': (2, 2), }"), "cannot read"),
        (header("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2, 2), }"), "the array has dtype"),
        (header("{'descr': '<i4', 'fortran_order': False, 'shape': (), }"), r"the array has shape \(\)"),
        (header("__import__('os').getcwd()"), "cannot read"),
        (header("(" * 3000), "cannot read"),
    ],
)
def test_damaged_files_are_refused_at_once(tmp_path: Path, make, what: str) -> None:
    file = tmp_path / "a.npy"
    make(file)
    with pytest.raises(UserError, match=what) as caught:
        corpus(file).check()
    assert str(file) in str(caught.value)
    assert "allow_pickle" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_array_in_fortran_order(tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.int64).reshape(10, 4)
    one = ready(save(tmp_path / "a.npy", rows), tmp_path)
    other = ready(save(tmp_path / "b.npy", np.asfortranarray(rows)), tmp_path)
    assert one.fingerprint == other.fingerprint


def test_folder_in_capitals(tmp_path: Path) -> None:
    with open(tmp_path / "A.NPY", "wb") as stream:
        np.save(stream, np.arange(20, dtype=np.int32).reshape(4, 5))
    corpus(tmp_path).check()


@pytest.mark.parametrize(
    ("number", "what"), [(-1, "row 2 contains the negative id -1"), (2**32, "row 2 contains the id 4294967296")]
)
def test_ids_out_of_range_are_refused(tmp_path: Path, number: int, what: str) -> None:
    rows = np.arange(20, dtype=np.int64).reshape(4, 5)
    rows[2, 3] = number
    with pytest.raises(UserError, match=what):
        ready(save(tmp_path / "a.npy", rows), tmp_path)


def test_single_row_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a single row cannot be split"):
        ready(save(tmp_path / "a.npy", np.arange(20, dtype=np.int32).reshape(1, 20)), tmp_path)
    with pytest.raises(UserError, match="all 3 rows are identical"):
        ready(save(tmp_path / "b.npy", np.ones((3, 20), dtype=np.int32)), tmp_path)


def test_text_tokenizer_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy", np.arange(20, dtype=np.int32).reshape(4, 5))
    with pytest.raises(UserError, match="the data are numbers, but the tokenizer is for text"):
        prepare(corpus(file), CharTrainer(), cache_dir=tmp_path)


def test_prompt_is_numbers() -> None:
    tokenizer = IdsTrainer(vocab_size=9).train([])
    assert tokenizer.encode(" 3 0  8").tolist() == [3, 0, 8]
    assert tokenizer.decode([3, 0, 8]) == "3 0 8"
    with pytest.raises(UserError, match="must consist of token ids"):
        tokenizer.encode("three")
    for outside in ("9", "-1"):
        with pytest.raises(UserError, match=f"the id {outside} is outside"):
            tokenizer.encode(outside)
