"""Reading text: refused and replaced bytes, marks and line endings, bounded memory."""

import codecs
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import text_corpus
from tinyllm.data import files
from tinyllm.data.files import read_text
from tinyllm.data.finding import find_files
from tinyllm.data.formats import kind_of
from tinyllm.errors import UserError


def read(path: Path, **how) -> str:
    return "".join(read_text(path, **how))


def found(path: Path | str) -> list[Path]:
    return [Path(file.path) for file in find_files(str(path), key="dataset.path").files]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(max_examples=40, deadline=None)
@given(
    content=st.text(
        alphabet=st.one_of(
            st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.sampled_from("\r\n€😀")
        )
    ),
    chunk=st.integers(1, 9),
)
def test_text_equals_what_open_reads(tmp_path_factory, content: str, chunk: int) -> None:
    """Python's own text mode is the reference, for any chunk size."""
    file = write(tmp_path_factory.getbasetemp() / "text", content.encode("utf-8", "surrogatepass"))
    if content.startswith("\ufeff") or kind_of(content.encode(), "text"):
        return
    before, files.CHUNK = files.CHUNK, chunk
    try:
        got = read(file)
    finally:
        files.CHUNK = before
    with open(file, encoding="utf-8") as stream:
        assert got == stream.read()


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=40).map(lambda b: b.replace(b"\0", b"x")), chunk=st.integers(1, 9))
def test_bad_bytes_at_any_chunk_size(tmp_path_factory, content: bytes, chunk: int) -> None:
    """Offset and replacement equal those of decoding the whole content."""
    if kind_of(content, "bytes") or content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return
    file = write(tmp_path_factory.getbasetemp() / "bytes", content)
    before, files.CHUNK = files.CHUNK, max(chunk, 3)
    try:
        expected = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        assert read(file, errors="replace") == expected
        try:
            content.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(UserError, match=f"at offset {error.start} is not UTF-8"):
                read(file)
    finally:
        files.CHUNK = before


def test_bad_byte_far_into_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "big.txt", b"x" * (3 * 2**20 + 17) + b"\xff" + b"y" * 100)
    with pytest.raises(UserError) as caught:
        read(file)
    assert "byte 0xff at offset 3145745" in str(caught.value)
    assert str(file) in str(caught.value)
    assert "dataset.errors=replace" in str(caught.value)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", codecs.BOM_UTF8 + b"a\r\nb\rc\nd\r")) == "a\nb\nc\nd\n"


def test_offset_counts_the_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="offset 4 "):
        read(write(tmp_path / "a", codecs.BOM_UTF8 + b"a\xff"))


def test_a_nul_byte_is_an_error_or_replaced(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"ab\0c\xe2\x82\xac")
    with pytest.raises(UserError, match="NUL byte at offset 2"):
        read(file)
    assert read(file, errors="replace") == "ab\ufffdc€"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "latin-1"])
def test_other_encodings_are_an_error(tmp_path: Path, encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    file = write(tmp_path / "a", mark + "Ärger über Straßen".encode(encoding))
    with pytest.raises(UserError, match=r"UTF-16|NUL|not UTF-8"):
        text_corpus(file).check()


def test_utf16_is_refused_with_the_command_to_convert_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="iconv -f UTF-16"):
        text_corpus(write(tmp_path / "a", "hello".encode("utf-16"))).check()


def test_a_file_is_never_fully_in_memory(tmp_path: Path) -> None:
    file = write(tmp_path / "big.txt", b"All work and no play makes Jack a dull boy.\n" * 500_000)
    tracemalloc.start()
    try:
        total = sum(len(chunk) for chunk in read_text(file))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == file.stat().st_size == 22_000_000
    assert peak < 8 * 2**20


def test_finding_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.md", ".hidden", ".git/config", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, b"text")

    def names(path: Path) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in found(path)]

    assert names(tmp_path) == ["a.txt", "a/y.md", "a/z.txt", "b.txt"]
    assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert names(tmp_path / "**" / "*.txt") == ["a.txt", "a/z.txt", "b.txt"]
    assert names(tmp_path / ".hidden") == [".hidden"]


def test_an_existing_file_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    file = write(tmp_path / "a[1].txt", b"text")
    assert found(file) == [file]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", b"text")
    assert found("~/a.txt") == [tmp_path / "a.txt"]


def test_a_text_with_a_long_blank_beginning(tmp_path: Path) -> None:
    """Longer than a chunk."""
    file = write(tmp_path / "a.txt", b" \n" * (files.CHUNK // 2 + 10) + b"text")
    text_corpus(file).check()
    write(tmp_path / "a.txt", b" \n" * (files.CHUNK // 2 + 10) + b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        text_corpus(file).check()


def no_file(folder: Path) -> str:
    return str(folder / "missing.txt")


def empty_file(folder: Path) -> str:
    return str(write(folder / "empty.txt", b""))


def white_file(folder: Path) -> str:
    return str(write(folder / "white.txt", b" \n\t\r\n "))


def only_a_mark(folder: Path) -> str:
    return str(write(folder / "bom.txt", codecs.BOM_UTF8))


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def binary_folder(folder: Path) -> str:
    (folder / "images").mkdir()
    write(folder / "images" / "a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    return str(folder / "images")


def folder_of_empty_files(folder: Path) -> str:
    (folder / "blank").mkdir()
    write(folder / "blank" / "a.txt", b"")
    write(folder / "blank" / "b.txt", b"")
    return str(folder / "blank")


def no_match(folder: Path) -> str:
    return str(folder / "*.nothing")


def dangling_link(folder: Path) -> str:
    (folder / "link.txt").symlink_to(folder / "nowhere")
    return str(folder / "link.txt")


@pytest.mark.parametrize("key", ["dataset.path", "dataset.val_path"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (no_file, "no such file or folder"),
        (empty_file, "the file is empty"),
        (white_file, "nothing but whitespace"),
        (only_a_mark, "nothing but whitespace"),
        (empty_folder, "the folder contains no text file"),
        (binary_folder, "the folder contains no text file"),
        (folder_of_empty_files, "all files are empty"),
        (no_match, "no file matches"),
        (dangling_link, "not a readable file or folder"),
        (lambda folder: "", "empty path"),
    ],
)
def test_unreadable_data_are_refused_before_anything_starts(tmp_path: Path, make, what: str, key: str) -> None:
    good = write(tmp_path / "good.txt", b"good text")
    path = make(tmp_path)
    places = {"path": str(good), key.removeprefix("dataset."): path}
    with pytest.raises(UserError, match=what) as caught:
        text_corpus(**places).check()
    assert (caught.value.key, caught.value.value) == (key, path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"text")
    file.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        text_corpus(file).check()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"dataset.val_fraction"):
        text_corpus("x", val_fraction=fraction)


def test_an_unknown_errors_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset.errors=ignore"):
        text_corpus("x", errors="ignore")
