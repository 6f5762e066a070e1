"""Files that are not text: every corpus names the format and what to do."""

import io
import lzma
import pickle
import shutil
import sqlite3
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import bin_corpus, text_corpus
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.formats import BINARY, advice_for, kind_of
from tinyllm.data.jsonl import JsonlCorpus
from tinyllm.data.npy import NpyCorpus
from tinyllm.errors import UserError

TEXT = b'{"text": "some text"}\n' * 40


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(12))
    return file.getvalue()


def database(place: Path) -> bytes:
    with sqlite3.connect(place) as connection:
        connection.execute("create table x (y)")
    connection.close()
    return place.read_bytes()


FILES = {
    "a.lzma": (lzma.compress(TEXT, format=lzma.FORMAT_ALONE), "LZMA-compressed", "unlzma -k"),
    "a.zlib": (zlib.compress(TEXT), "zlib-compressed", "zlib-flate"),
    "a.pkl": (pickle.dumps([TEXT]), "a Python pickle", "dataset=jsonl"),
    "a.lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "LZ4-compressed", "unlz4"),
    "a.zip": (zipped("a.txt"), "a zip archive", "unzip"),
    "A.DOCX": (zipped("word/document.xml"), "an office document", "pandoc -t plain"),
    "a.npz": (zipped("a.npy"), "a NumPy archive", "numpy.save"),
    "a.tar": (tarred(), "a tar archive", "tar -xf"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF", "pdftotext"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an old Office document", "plain text"),
    "a.parquet": (b"PAR1\x15\x04\x15\x10" + bytes(30) + b"PAR1", "a Parquet table", "dataset=parquet"),
    "a.arrow": (b"ARROW1\0\0\xff\xff\xff\xff", "an Arrow table", "dataset=jsonl"),
    "data.npy": (array(), "a NumPy array", "dataset=npy"),
    "train.bin": (np.arange(5000, dtype=np.uint16).tobytes(), "raw numbers without a header", "dataset=bin"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image", "text files"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_a_file_that_is_not_text_is_refused_by_format(tmp_path: Path, name: str, errors: str) -> None:
    """The advice is never dataset.errors=replace, which would train on noise."""
    content, kind, advice = FILES[name]
    file = tmp_path / name
    file.write_bytes(content)
    corpora = [
        text_corpus(file, errors=errors),
        JsonlCorpus(path=str(file), val_path=None, val_fraction=0.1, field="text", errors=errors),
    ]
    for corpus in corpora:
        with pytest.raises(UserError, match=kind) as caught:
            corpus.check()
        assert advice in caught.value.hint
        assert str(file) in str(caught.value)
        assert "errors=replace" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "name"),
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")],
)
def test_text_in_utf16_or_utf32_is_refused_with_the_command_to_convert_it(
    tmp_path: Path, codec: str, name: str
) -> None:
    file = tmp_path / "a b.jsonl"
    file.write_bytes(TEXT.decode().encode(codec))
    corpora = [
        text_corpus(file),
        JsonlCorpus(path=str(file), val_path=None, val_fraction=0.1, field="text", errors="strict"),
    ]
    for corpus in corpora:
        with pytest.raises(UserError, match=f"iconv -f {name} -t UTF-8 '"):
            corpus.check()


def test_an_executable_is_not_mistaken_for_utf16(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x7fELF\x02\x01\x01\0\0\xd0")
    with pytest.raises(UserError, match="this is not a text file"):
        text_corpus(tmp_path / "a").check()


def test_an_sqlite_database_is_recognized(tmp_path: Path) -> None:
    assert kind_of(database(tmp_path / "a.db"), "a.db") == "an SQLite database"


@pytest.mark.parametrize("tool", ["zstd", "lz4"])
def test_files_written_by_other_programs_are_recognized(tmp_path: Path, tool: str) -> None:
    import subprocess

    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    packed = subprocess.run([tool, "-c"], input=TEXT, capture_output=True, check=True).stdout
    assert kind_of(packed, "x").lower() == {"zstd": "zstandard-compressed", "lz4": "lz4-compressed"}[tool]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"PAR1 is a word",
        b"BZh9 too",
        b"PK",
        b"%PDF is a format",
        b"7z",
        b"\xef\xbb\xbfabc",
        b"GIF8 bits",
        b"\xff\xfea\0",
        b"x = 3",
    ],
)
def test_text_is_not_mistaken_for_a_binary_format(text: bytes) -> None:
    assert kind_of(text, "a.txt") == ""


def test_other_formats_in_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    for name, (content, _, _) in FILES.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="the folder contains no text file") as caught:
        text_corpus(tmp_path).check()
    assert "1 PDF" in caught.value.hint
    (tmp_path / "a.txt").write_text("some text " * 20)
    source = text_corpus(tmp_path).open(ContentHashes(tmp_path / ".cache"))
    assert len(list(source.documents())) == 1
    [note] = source.notes
    assert f"{len(FILES)} entries" in note
    for part in ("1 PDF", "1 LZ4-compressed", "1 image"):
        assert part in note


def test_the_command_in_the_advice_is_quoted(tmp_path: Path) -> None:
    assert "'a b;c.gz'" in advice_for("gzip-compressed", "a b;c.gz")
    assert "NUL" in advice_for(BINARY, "x")


def test_the_advice_for_raw_numbers_works(tmp_path: Path) -> None:
    """For nanoGPT's train.bin; the advice does not involve pickle."""
    file = tmp_path / "train.bin"
    np.arange(1000, dtype=np.uint16).tofile(file)
    corpus = NpyCorpus(path=str(file), val_path=None, val_fraction=0.1)
    with pytest.raises(UserError, match=r"raw numbers without a header, like nanoGPT's train\.bin") as caught:
        corpus.check()
    assert "pickle" not in str(caught.value)
    assert "dataset=bin" in caught.value.hint
    bin_corpus(file).check()
