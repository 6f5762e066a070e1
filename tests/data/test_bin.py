"""Raw token ids: nanoGPT's files and llm.c's shards."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import bin_corpus
from tinyllm.data.bin import BinCorpus
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.prepare import prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTrainer
from tinyllm.tokenizers.pretrained import FixedTrainer

IDS = np.random.default_rng(0).integers(1, 250, size=5000)
LLMC = {"uint16": (20240520, 1, "<u2"), "uint32": (20240801, 7, "<u4")}


def write(file: Path, ids: np.ndarray, layout: str = "nanogpt") -> Path:
    """Write ids as the programs that people come from do."""
    if layout == "nanogpt":
        ids.astype(np.uint16).tofile(file)
        return file
    magic, version, dtype = LLMC[layout]
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    file.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    return file


def ids_of(corpus: BinCorpus, folder: Path) -> list[list[int]]:
    documents = corpus.open(ContentHashes(folder / "hashes")).documents()
    return [np.concatenate(list(document.chunks())).tolist() for document in documents]


@pytest.mark.parametrize("layout", ["nanogpt", *LLMC])
def test_all_layouts_give_the_same_ids(tmp_path: Path, layout: str) -> None:
    file = write(tmp_path / "train.bin", IDS, layout)
    assert ids_of(bin_corpus(file), tmp_path) == [IDS.tolist()]
    [document] = bin_corpus(file).open(ContentHashes(tmp_path / "hashes")).documents()
    other = write(tmp_path / "other.bin", IDS)
    [same] = bin_corpus(other).open(ContentHashes(tmp_path / "hashes")).documents()
    assert document.digest == same.digest


@pytest.mark.parametrize("leads", [False, True], ids=["nanoGPT: after", "llm.c: before"])
def test_documents_end_at_the_separator_and_no_id_is_lost(
    tmp_path: Path, leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllm.data.bin.BLOCK", 7)
    documents = [[3, 4, 5], [6], list(range(1, 30)), [8, 9]]
    ids = [token for document in documents for token in ([0, *document] if leads else [*document, 0])]
    file = write(tmp_path / "train.bin", np.array(ids))
    found = ids_of(bin_corpus(file, eot_id=0), tmp_path)
    assert found == [[0, *document] if leads else [*document, 0] for document in documents]


def test_the_tokenizer_that_made_the_ids_makes_them_text(tmp_path: Path) -> None:
    """Token by token the data are those of the text itself, with bytes for bits per byte."""
    tokenizer = ByteTokenizer()
    texts = [f"Document {i} says hello, wörld.\n" for i in range(50)]
    ids = np.concatenate([[*tokenizer.encode(text), tokenizer.eot_id] for text in texts])
    file = write(tmp_path / "train.bin", ids, "uint16")
    data = prepare(bin_corpus(file, eot_id=tokenizer.eot_id), FixedTrainer(tokenizer), cache_dir=tmp_path / "cache")
    both = [*data.train.ids, *data.val.ids]
    assert sorted(both) == sorted(ids.tolist())
    assert data.tokenizer.decode(data.train.ids).startswith("Document")
    assert data.train.byte_count(0, data.train.n_tokens) == sum(token != tokenizer.eot_id for token in data.train.ids)


def test_ids_alone_are_numbers_without_bytes(tmp_path: Path) -> None:
    data = prepare(bin_corpus(write(tmp_path / "a.bin", IDS)), IdsTrainer(), cache_dir=tmp_path / "cache")
    assert [*data.train.ids, *data.val.ids] == IDS.tolist()
    assert data.val.byte_count(0, 10) is None
    assert data.val.n_tokens == len(IDS) // 10


def test_a_validation_file(tmp_path: Path) -> None:
    train, val = write(tmp_path / "train.bin", IDS), write(tmp_path / "val.bin", IDS[:77], "uint32")
    data = prepare(bin_corpus(train, val_path=str(val)), IdsTrainer(), cache_dir=tmp_path / "cache")
    assert [*data.train.ids] == IDS.tolist() and [*data.val.ids] == IDS[:77].tolist()


def test_ids_that_the_tokenizer_has_not(tmp_path: Path) -> None:
    file = write(tmp_path / "a.bin", np.append(IDS, 300))
    with pytest.raises(UserError, match=r"the id 300, which the tokenizer has not .*its ids end at 256"):
        prepare(bin_corpus(file), FixedTrainer(ByteTokenizer()), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="tokenizer=pretrained"):
        prepare(bin_corpus(file), CharTrainer(), cache_dir=tmp_path / "cache")


def test_headers_that_are_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "a.bin", IDS, "uint16")
    whole = file.read_bytes()
    for content, match in (
        (whole[:-2], r"the size of the file is 11,022 bytes .*it would be 11,024"),
        (np.array([20240802, 7], dtype="<i4").tobytes() + whole[8:], "unknown magic number 20240802 with version 7"),
        (np.array([20240520, 2], dtype="<i4").tobytes() + whole[8:], "unknown magic number 20240520 with version 2"),
        (write(tmp_path / "b.bin", IDS[:0], "uint16").read_bytes(), "no ids"),
        (b"abc", "3 bytes are not a whole number of ids"),
        (b"", "empty"),
        (b"\x1f\x8b" + whole, "gzip-compressed"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=match):
            bin_corpus(file).check()
