"""The token cache: its content, and that no damage or edit makes a run train on wrong ids."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import text_corpus
from tinyllm.data import content_hashes as hashes
from tinyllm.data import token_cache as cache
from tinyllm.data import token_writer
from tinyllm.data.prepare import cached, prepare
from tinyllm.data.token_data import TokenData
from tinyllm.data.token_writer import TokenWriter, dtype_for
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTokenizer, CharTrainer
from tinyllm.tokenizers.ids import IdsTokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {i} of a small text\n" for i in range(3000)))
    return file


@pytest.fixture
def data(text: Path, tmp_path: Path) -> TokenData:
    return prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path / "cache")


def again(text: Path, tmp_path: Path) -> TokenData:
    return prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path / "cache")


def edit(file: Path, change) -> None:
    """Change bytes in place in a read-only file."""
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    changed = change(content)
    file.write_bytes(content if changed is None else changed)


def edit_meta(file: Path, change) -> None:
    def changed(content: bytearray) -> bytes:
        meta = json.loads(content)
        change(meta)
        return json.dumps(meta).encode()

    edit(file, changed)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


def re_seal(meta: dict) -> None:
    """As a careful forger would: with a matching digest."""
    meta.pop("digest")
    meta["digest"] = cache._digest(meta)


def forged(meta: dict, **changes) -> None:
    meta["splits"]["train"].update(changes)
    re_seal(meta)


def replace_ids(folder: Path, values: np.ndarray) -> None:
    """Other ids, with a meta.json whose hashes match them."""
    entry: dict = {}

    def rewrite(content: bytearray) -> bytes:
        entry.update(json.loads((folder / "meta.json").read_bytes())["splits"]["train"])
        return values.astype(entry["dtype"]).tobytes()

    edit(folder / "train.bin", rewrite)
    block = (folder / "train.bin").read_bytes()
    assert len(block) < cache.BLOCK_BYTES
    blocks = [hashlib.sha256(block).hexdigest()]
    edit_meta(folder / "meta.json", lambda meta: forged(meta, blocks=blocks, tokens=len(values)))


def other_tokenizer() -> bytes:
    return CharTokenizer("ab").to_json().encode()


DAMAGE = {
    "bit flipped in the middle": lambda f: edit(f / "train.bin", flip),
    "bit flipped in validation": lambda f: edit(f / "val.bin", flip),
    "one id missing": lambda f: edit(f / "train.bin", lambda c: c[:-2]),
    "odd size": lambda f: edit(f / "train.bin", lambda c: c[:-1]),
    "emptied": lambda f: edit(f / "train.bin", lambda c: b""),
    "longer": lambda f: edit(f / "train.bin", lambda c: c + b"\0\0"),
    "a page of zeros": lambda f: edit(f / "train.bin", lambda c: c[:4096] + bytes(4096) + c[8192:]),
    "ids missing": lambda f: (f / "train.bin").unlink(),
    "train and val swapped": lambda f: (
        (f / "train.bin").rename(f / "x"),
        (f / "val.bin").rename(f / "train.bin"),
        (f / "x").rename(f / "val.bin"),
    ),
    "id beyond the vocabulary in the middle": lambda f: replace_ids(f, np.array([1, 2, 99, 3])),
    "id beyond the vocabulary at the end": lambda f: replace_ids(f, np.array([1, 2, 3, 99])),
    "meta missing": lambda f: (f / "meta.json").unlink(),
    "meta emptied": lambda f: edit(f / "meta.json", lambda c: b""),
    "meta not JSON": lambda f: edit(f / "meta.json", lambda c: c[:-20]),
    "meta a list": lambda f: edit(f / "meta.json", lambda c: b"[]"),
    "meta edited": lambda f: edit_meta(f / "meta.json", lambda m: m["notes"].append("x")),
    "vocabulary edited": lambda f: edit_meta(f / "meta.json", lambda m: (m.update(vocab_size=7), re_seal(m))),
    "dtype edited": lambda f: edit_meta(f / "meta.json", lambda m: forged(m, dtype="uint32")),
    "dtype absurd": lambda f: edit_meta(f / "meta.json", lambda m: forged(m, dtype="float32")),
    "token count edited": lambda f: edit_meta(f / "meta.json", lambda m: forged(m, tokens=5)),
    "other format": lambda f: edit_meta(f / "meta.json", lambda m: (m.update(format=0), re_seal(m))),
    "other key": lambda f: edit_meta(f / "meta.json", lambda m: (m.update(key="x"), re_seal(m))),
    "tokenizer edited": lambda f: edit(f / "tokenizer.json", lambda c: c.replace(b"eot", b"EOT")),
    "tokenizer of another text": lambda f: edit(f / "tokenizer.json", lambda c: other_tokenizer()),
    "tokenizer missing": lambda f: (f / "tokenizer.json").unlink(),
    "exceptions damaged": lambda f: edit(f / "exceptions.npz", flip),
    "emptied folder": lambda f: [file.unlink() for file in f.iterdir()],
    "foreign folder": lambda f: (shutil.rmtree(f), f.mkdir(), (f / "data.bin").write_bytes(b"not ours")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_repaired(data: TokenData, text: Path, tmp_path: Path, damage) -> None:
    expected = data.train.read(0, data.train.n_tokens).tolist()
    damage(data.path)
    assert cached(text_corpus(text), CharTrainer(), cache_dir=tmp_path / "cache") is None
    mended = again(text, tmp_path)
    assert mended.train.read(0, mended.train.n_tokens).tolist() == expected
    assert mended.fingerprint == data.fingerprint
    assert len(mended.notes) == 1
    assert mended.notes[0].startswith("The token cache was damaged (")
    assert again(text, tmp_path).notes == []


def test_what_is_stored(data: TokenData) -> None:
    assert sorted(file.name for file in data.path.iterdir()) == [
        "checked.json", "exceptions.npz", "meta.json", "tokenizer.json", "train.bin", "val.bin",
    ]  # fmt: skip
    assert (data.path / "train.bin").stat().st_size == 2 * data.train.n_tokens
    assert not (data.path / "train.bin").stat().st_mode & 0o222


def test_a_running_training_keeps_its_data_when_the_cache_is_rebuilt(
    data: TokenData, text: Path, tmp_path: Path
) -> None:
    before = data.train.read(0, 100).tolist()
    (data.path / "val.bin").unlink()
    again(text, tmp_path)
    assert data.train.read(0, 100).tolist() == before


def settle(folder: Path) -> None:
    """As if the files had been older when they were hashed."""
    [file] = (folder / "cache" / "sources").iterdir()
    memo = json.loads(file.read_bytes())
    file.write_text(json.dumps({name: [*entry[:4], True, *entry[5:]] for name, entry in memo.items()}))


def test_unchanged_text_is_not_read_again(data: TokenData, text: Path, tmp_path: Path, monkeypatch) -> None:
    settle(tmp_path)
    monkeypatch.setattr("tinyllm.data.content_hashes._content", lambda file: pytest.fail("read again"))
    assert again(text, tmp_path).fingerprint == data.fingerprint


def test_text_changed_just_before_it_was_hashed_is_hashed_again(
    data: TokenData, text: Path, tmp_path: Path, monkeypatch
) -> None:
    """A second change within the same clock tick would leave the same stamp."""
    read: list[Path] = []
    content = hashes._content
    monkeypatch.setattr(hashes, "_content", lambda file: read.append(file) or content(file))
    cached(text_corpus(text), CharTrainer(), cache_dir=tmp_path / "cache")
    assert read == [str(text)]


@pytest.mark.parametrize("memo", ["", "[]", "{", '{"x": 1}', '{"x": [1]}', '{"x": [1, 2, 3, 4, true, 5, "", null, 9]}'])
def test_a_damaged_memo_of_hashes_is_ignored(data: TokenData, text: Path, tmp_path: Path, memo: str) -> None:
    [file] = (tmp_path / "cache" / "sources").iterdir()
    file.write_text(memo)
    assert again(text, tmp_path).fingerprint == data.fingerprint


@pytest.mark.parametrize("settled", [False, True])
def test_edited_text_is_noticed(data: TokenData, text: Path, tmp_path: Path, settled: bool) -> None:
    """Of the same size and with the modification time set back, as some editors do."""
    if settled:
        settle(tmp_path)
    status = text.stat()
    text.write_text(text.read_text().replace("line 7 ", "LINE 7 "))
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = again(text, tmp_path)
    assert changed.fingerprint != data.fingerprint
    assert "LINE 7 " in changed.tokenizer.decode(changed.train.read(0, 2000))


def test_moved_text_is_the_same_text(data: TokenData, text: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    text.rename(moved)
    assert again(moved, tmp_path).path == data.path


def test_other_settings_have_other_caches(data: TokenData, text: Path, tmp_path: Path) -> None:
    other = prepare(text_corpus(text, val_fraction=0.2), CharTrainer(), cache_dir=tmp_path / "cache")
    third = prepare(text_corpus(text), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert len({data.path, other.path, third.path}) == 3


@pytest.mark.parametrize(("vocab", "dtype"), [(2, "uint16"), (65535, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_the_dtype_follows_the_vocabulary_size(vocab: int, dtype: str, tmp_path: Path) -> None:
    """At the boundary: id 65535 fits into 16 bits, id 65536 would silently wrap to 0."""
    assert dtype_for(vocab) == dtype
    with TokenWriter(tmp_path / "x.bin", IdsTokenizer(vocab_size=vocab)) as writer:
        writer.write(np.array([0, vocab - 1], dtype=np.uint32), None)
        entry, _ = writer.finish()
    assert np.fromfile(tmp_path / "x.bin", dtype=entry["dtype"]).tolist() == [0, vocab - 1]


def test_writer_refuses_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    with (
        TokenWriter(tmp_path / "x.bin", IdsTokenizer(vocab_size=10)) as writer,
        pytest.raises(RuntimeError, match="id 10"),
    ):
        writer.write(np.array([10]), None)


def test_large_cache_with_an_untouched_stamp_is_sampled(text: Path, tmp_path: Path, monkeypatch) -> None:
    """An edit is found nevertheless, because it changes the stamp."""
    for module in (cache, token_writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 512)
    monkeypatch.setattr(cache, "ALWAYS_CHECKED_BYTES", 1024)
    data = again(text, tmp_path)
    checked: list[bool] = []

    class Counting:  # in place of hashlib, which every check of a block calls once
        @staticmethod
        def sha256(content: bytes):
            checked.append(len(content) in (512, 2 * data.train.n_tokens % 512, 2 * data.val.n_tokens % 512))
            return hashlib.sha256(content)

    monkeypatch.setattr(cache, "hashlib", Counting)
    again(text, tmp_path)
    blocks = sum(-(-split.n_tokens * 2 // 512) for split in (data.train, data.val))
    assert 2 * cache.RANDOM_BLOCKS <= sum(checked) <= 2 * (cache.RANDOM_BLOCKS + 2) < blocks
    edit(data.path / "train.bin", flip)
    assert len(again(text, tmp_path).notes) == 1


@pytest.mark.parametrize("where", ["cache", "cache/tokens", "cache/sources"])
def test_a_cache_folder_that_cannot_be_written_is_refused(text: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("a file is in the way")
    if where == "cache/sources":
        again(text, tmp_path)  # only a memory
        return
    with pytest.raises(UserError, match=r"cannot write the token cache.*TINYLLM_CACHE") as caught:
        again(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_full_disk(text: Path, tmp_path: Path) -> None:
    """Simulated by RLIMIT_FSIZE: a write fails in the middle of a file."""
    import subprocess
    import sys

    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
from tests.data.conftest import text_corpus
from tinyllm.data.prepare import prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.char import CharTrainer
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    prepare(text_corpus({str(text)!r}), CharTrainer(), cache_dir={str(tmp_path / "cache")!r})
except UserError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "cannot write the token cache" in out
    assert [file.name for file in (tmp_path / "cache" / "tokens").iterdir() if not file.name.endswith(".lock")] == []
    assert again(text, tmp_path).notes == []


def test_the_cache_folder_is_taken_from_the_environment(text: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "elsewhere"))
    assert prepare(text_corpus(text), CharTrainer()).path.is_relative_to(tmp_path / "elsewhere")
