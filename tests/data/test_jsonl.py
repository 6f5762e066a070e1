"""JSON lines corpus."""

import json
import sys
from pathlib import Path

import pytest

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.jsonl import JsonlCorpus
from tinyllm.data.prepare import prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer


def corpus(path: Path, **changes) -> JsonlCorpus:
    defaults = {"path": str(path), "val_path": None, "val_fraction": 0.1, "field": "text", "errors": "strict"}
    return JsonlCorpus(**defaults | changes)


def texts_of(corpus: JsonlCorpus, folder: Path) -> list[str]:
    documents = corpus.open(ContentHashes(folder / "hashes")).documents()
    return ["".join(document.chunks()) for document in documents]


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_documents(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "one\r\ntwo"}),
        "",
        '{"text": ""}',
        '{"id": 3, "text": "dr\\u00e9i \\ud83d\\ude00 ü"}\r',
    ]
    assert texts_of(corpus(write(tmp_path / "a.jsonl", *lines)), tmp_path) == ["one\r\ntwo", "dréi 😀 ü"]


def test_field_and_folder(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"body": "first"}')
    write(tmp_path / "c.ndjson", '{"body": "second"}')
    write(tmp_path / "notes.txt", "not JSON")
    assert texts_of(corpus(tmp_path, field="body"), tmp_path) == ["first", "second"]


@pytest.mark.parametrize(
    ("line", "what", "where"),
    [
        ("not json", "the line is not JSON", "a.jsonl:3"),
        ('{"text": "cut', "the line is not JSON", "a.jsonl:3"),
        ("[" * 100_000, "the line is not JSON", "a.jsonl:3"),
        (
            '{"a": ' + "9" * 5000 + "}",
            "a whole number has more than 4,300 digits; write one object",
            "a.jsonl:3",
        ),
        ("[1, 2]", "not a JSON object", "a.jsonl:3"),
        ('{"body": "x", "id": 1}', "lacks the field", "a.jsonl:3"),
        ("{}", "lacks the field", "a.jsonl:3"),
        ('{"text": 7}', "the field is not text", "a.jsonl:3"),
        ('{"text": null}', "the field is not text", "a.jsonl:3"),
        (b'{"text": "\xff"}', "byte 0xff \\(byte 10 of the line\\) is not UTF-8", "a.jsonl:3"),
        ('{"text": "\\ud800"}', "lone surrogate", "a.jsonl:3"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str | bytes, what: str, where: str) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "fine"}', "", line)
    bad = corpus(file)
    bad.check()  # looks at the beginning only
    with pytest.raises(UserError, match=what) as caught:
        prepare(bad, ByteTrainer(), cache_dir=tmp_path / "cache")
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_field_within_objects(tmp_path: Path) -> None:
    lines = [
        {"doc": {"text": "nested", "part": {"text": "deeper"}}},
        {"doc.text": "literal", "doc": {"text": "nested", "part.text": "half literal"}, "doc.part": {"text": "other"}},
    ]
    file = write(tmp_path / "a.jsonl", *map(json.dumps, lines))
    assert texts_of(corpus(file, field="doc.text"), tmp_path) == ["nested", "literal"]
    assert texts_of(corpus(file, field="doc.part.text"), tmp_path) == ["deeper", "other"]
    with pytest.raises(UserError, match=r"its fields are doc, doc.part, doc.text") as caught:
        corpus(file, field="doc.body").check()
    assert (caught.value.key, caught.value.value) == ("dataset.field", "doc.body")
    with pytest.raises(UserError, match="the field is not text"):
        corpus(file, field="doc").check()


@pytest.mark.parametrize("name", ["a.JSONL", "a.NdJson", "a.json"])
def test_a_folder_of_files_with_other_suffixes(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, '{"text": "found"}')
    assert texts_of(corpus(tmp_path), tmp_path) == ["found"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ('[{"text": "a"}, {"text": "b"}]', "jq -c '.[]'"),
        ('[\n  {"text": "a"},\n  {"text": "b"}\n]', "jq -c '.[]'"),
        ('{\n  "text": "a"\n}', "jq -c . "),
    ],
)
def test_a_json_document_is_refused_with_the_command_to_convert_it(tmp_path: Path, content: str, hint: str) -> None:
    with pytest.raises(UserError, match="the line is not") as caught:
        corpus(write(tmp_path / "a.json", content)).check()
    assert hint in caught.value.hint
    assert str(tmp_path / "a.json") in caught.value.hint


def test_a_large_document_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored as UTF-8, so that a chunk may end within a character."""
    text = "aé€😀" * 50
    file = write(tmp_path / "a.jsonl", json.dumps({"text": text}))
    for size in (4, 7, 30, 1000):
        monkeypatch.setattr("tinyllm.data.selection.CHUNK", size)
        [document] = corpus(file).open(ContentHashes(tmp_path / "hashes")).documents()
        chunks = list(document.chunks())
        assert "".join(chunks) == text
        assert max(len(chunk.encode()) for chunk in chunks) <= size


def test_a_byte_order_mark_at_the_start_of_a_text_is_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"\ufeff{word}\r\nand more"}) for word in ("one", "two")]
    assert texts_of(corpus(write(tmp_path / "a.jsonl", *lines)), tmp_path) == ["one\r\nand more", "two\r\nand more"]


def test_line_endings_do_not_make_another_document(tmp_path: Path) -> None:
    texts = ["one\ntwo\n" * 30, "one\r\ntwo\r\n" * 30, "one\rtwo\r" * 30]
    file = write(tmp_path / "a.jsonl", *(json.dumps({"text": text}) for text in texts))
    data = prepare(corpus(file), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert data.notes == ["All 3 documents are the same text; it was used once."]


def test_a_character_beyond_ascii_does_not_slow_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python code runs per character: a long text takes as many calls as a short one."""
    counts = []
    for length in (10, 10_000):
        file = write(tmp_path / f"{length}.jsonl", json.dumps({"text": "é" + "x" * length}))
        calls = 0

        def count(frame, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        reader = corpus(file)
        sys.setprofile(count)
        try:
            reader.check()
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[1] <= counts[0] + 20


def test_a_missing_field_is_refused_with_the_fields_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.field=text.*its fields are body, id"):
        corpus(write(tmp_path / "a.jsonl", '{"id": 1, "body": "x"}')).check()


def test_errors_replace(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'{"text": "a\xffb"}', '{"text": "c\\ud800d"}')
    assert texts_of(corpus(file, errors="replace"), tmp_path) == ["a\ufffdb", "c\ufffdd"]


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n', '{"text": " \\n"}\n', "\ufeff"])
def test_files_without_text_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="it contains no text"):
        corpus(write(tmp_path / "a.jsonl", content)).check()


def test_folder_without_jsonl(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no .jsonl or .ndjson file"):
        corpus(tmp_path).check()


def test_single_line_is_cut(tmp_path: Path) -> None:
    data = prepare(corpus(write(tmp_path / "a.jsonl", '{"text": "0123456789"}')), ByteTrainer(), cache_dir=tmp_path)
    assert data.tokenizer.decode(data.train.read(0, data.train.n_tokens)) == "012345678"
    assert data.tokenizer.decode(data.val.read(0, data.val.n_tokens)) == "9"


def test_same_documents_in_a_different_field_are_a_different_corpus(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "a b", "body": "c d"}', '{"text": "e f", "body": "g h"}')
    one = prepare(corpus(file), ByteTrainer(), cache_dir=tmp_path / "cache")
    two = prepare(corpus(file, field="body"), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert one.path != two.path
