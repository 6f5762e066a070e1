"""Parquet tables as a corpus."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.parquet import ParquetCorpus
from tinyllm.errors import UserError


def corpus(path: Path, **changes: Any) -> ParquetCorpus:
    return ParquetCorpus(**{"path": str(path), "val_path": None, "val_fraction": 0.1, "field": "text"} | changes)


def texts_of(corpus: ParquetCorpus, folder: Path) -> list[str]:
    corpus.check()
    source = corpus.open(ContentHashes(folder / "hashes"))
    first, again = (["".join(document.chunks()) for document in source.documents()] for _ in range(2))
    assert first == again
    return first


def write(path: Path, column: Any, name: str = "text", **settings: Any) -> Path:
    pq.write_table(pa.table({"id": pa.nulls(len(column)), name: column}), path, **settings)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_each_row_with_text_is_a_document(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"row {i}, häh\r\n" * 40 for i in range(2500)]
    column = pa.array([None, "", *texts], type=pa.string()).cast(kind)
    write(tmp_path / "1.parquet", column, row_group_size=700, compression="zstd")
    write(tmp_path / "2.PARQUET", pa.array(["last"]))
    assert texts_of(corpus(tmp_path), tmp_path) == [*texts, "last"]


def test_a_field_of_structs(tmp_path: Path) -> None:
    rows = [{"meta": {"body": f"text {i}", "n": i}} for i in range(5)]
    write(tmp_path / "a.parquet", pa.array(rows), name="doc")
    assert texts_of(corpus(tmp_path, field="doc.meta.body"), tmp_path) == [f"text {i}" for i in range(5)]
    write(tmp_path / "a.parquet", pa.array(["literal"]), name="doc.meta.body")
    assert texts_of(corpus(tmp_path, field="doc.meta.body"), tmp_path) == ["literal"]


def test_columns_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array([{"n": 1}]), name="doc")
    for field, match in (
        ("text", "no such column .*dataset.field=text.*there are id, doc"),
        ("doc.m", "no such column"),
        ("id.n", "no such column"),
        ("doc", "holds struct"),
        ("doc.n", "holds int64"),
    ):
        with pytest.raises(UserError, match=match):
            corpus(tmp_path, field=field).check()
    write(tmp_path / "a.parquet", pa.array([" ", "\n", None]))
    with pytest.raises(UserError, match="it contains no text"):
        corpus(tmp_path).check()


def test_damage_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pa.array([f"text {i}" * 100 for i in range(9000)]), row_group_size=3000)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:-9], whole[:-100] + whole[-60:], whole[:middle] + bytes(600) + whole[middle + 600 :]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"the Parquet file is damaged \(.*a\.parquet\)"):
            texts_of(corpus(tmp_path), tmp_path)
    file.write_text("some text")
    with pytest.raises(UserError, match="not a Parquet table"):
        corpus(file).check()


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"b\xffd"]).view(pa.string())
    file = write(tmp_path / "a.parquet", bad)
    with pytest.raises(UserError, match=r"byte 0xff \(byte 1 of the text\) is not UTF-8 .*row 2"):
        texts_of(corpus(file), tmp_path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):  # the second too, which another test may have imported
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r"pyarrow.parquet cannot be imported .*dataset=parquet.*pip install 'tinyllm\[data\]'"
    ):
        corpus(tmp_path)
