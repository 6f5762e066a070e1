"""Compressed files are read like the files in them, and damaged ones name the offset."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.data.conftest import text_corpus
from tests.data.test_jsonl import corpus as jsonl_corpus
from tinyllm.data.compression import opened
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.document import Document
from tinyllm.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
TEXT = "".join(random.Random(1).choices("abc déf\r\n", k=300_000)).encode()
each = pytest.mark.parametrize("packed", PACK)


def read(file: Path) -> bytes:
    with opened(file) as stream:
        return stream.read()


def documents(folder: Path) -> dict[str, Document]:
    source = text_corpus(folder).open(ContentHashes(folder.parent / "hashes"))
    assert source.notes == []
    return {"".join(document.chunks()): document for document in source.documents()}


@each
def test_members_that_follow_each_other_are_one_file(tmp_path: Path, packed: str) -> None:
    """As parallel compressors and ``cat`` write them; the padding of tapes is ignored."""
    pack, file = PACK[packed], tmp_path / "name without a suffix"
    file.write_bytes(pack(TEXT) + pack(b"") + pack(b"the end\n") + bytes(512))
    assert read(file) == TEXT + b"the end\n"
    with opened(file, unpack=False) as stream:
        assert stream.read() == file.read_bytes()


@each
def test_damage_names_the_file_and_the_offset(tmp_path: Path, packed: str) -> None:
    whole, file = PACK[packed](TEXT), tmp_path / "damaged"
    half = len(whole) // 2
    for damaged, offset in (
        (whole[:-5], len(whole) - 5),
        (whole[:half], half),
        (whole[: half - 2000] + bytes(4000) + whole[half + 2000 :], 65_536 * (half // 65_536)),
        (whole + b"what is this, which is not compressed?", 65_536 * (len(whole) // 65_536)),
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            read(file)
        assert caught.value.file == file
        said = [int(word.strip(":,").replace(",", "")) for word in caught.value.what.split() if word[0].isdigit()]
        assert said[0] <= offset + 65_536 and said[-1] >= offset


@each
def test_a_compressed_text_is_the_same_document(tmp_path: Path, packed: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(TEXT)
    [(text, plain)] = documents(folder).items()
    (folder / "a.txt").rename(tmp_path / "a.txt")
    (folder / "b").write_bytes(PACK[packed](TEXT))
    for _ in range(2):  # the second time, the content hashes are remembered
        [(unpacked, document)] = documents(folder).items()
        assert unpacked == text == TEXT.decode().replace("\r\n", "\n").replace("\r", "\n")
        assert document.text_digest == plain.text_digest
        assert document.size == len(text.encode())


def test_json_lines_in_a_folder_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl.zst").write_bytes(PACK["zst"](b'{"text": "two"}\n'))
    (tmp_path / "c.json.gz").write_bytes(PACK["gz"](b"{}"))
    source = jsonl_corpus(tmp_path).open(ContentHashes(tmp_path / "hashes"))
    assert ["".join(document.chunks()) for document in source.documents()] == ["one", "two"]


def test_what_is_in_a_compressed_file_decides_whether_it_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"))
    with pytest.raises(UserError, match="the file is a PDF"):
        text_corpus(tmp_path / "a.gz").check()
    (tmp_path / "b.txt").write_text("some text")
    [note] = text_corpus(tmp_path).open(ContentHashes(tmp_path / "hashes")).notes
    assert "1 PDF" in note


def test_zstandard_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zst").write_bytes(PACK["zst"](TEXT))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(UserError, match=r"pip install 'tinyllm\[data\]'"):
        text_corpus(tmp_path / "a.zst").check()
