"""A killed preparation goes on from its last finished shard, and gives what an uninterrupted one gives, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import text_corpus
from tinyllm.data import build_cache, journal
from tinyllm.data.build_cache import remove_stale
from tinyllm.data.encode import encode_documents
from tinyllm.data.prepare import prepare
from tinyllm.data.token_data import TokenData
from tinyllm.data.token_writer import DamagedIdsError, TokenWriter
from tinyllm.tokenizers import TokenizerTrainer
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.utils.locks import try_lock

PIECE, BATCH, SHARD = 40, 200, 900
"""Small enough that a text of a few kilobytes has several shards that end within documents."""
SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen; 'twas 1984 — déjà vu.\n"

# The same in a process of its own, which TINYLLM_FAULT kills.
WORKER = f"""
import sys
from tests.data.conftest import text_corpus
from tinyllm.data import build_cache
from tinyllm.data.encode import encode_documents
from tinyllm.data.prepare import prepare
from tests.data.test_resumed_preparation import char
build_cache.SHARD_TOKENS = {SHARD}
encode_documents.__kwdefaults__.update(piece={PIECE}, batch={BATCH})
prepare(text_corpus(sys.argv[1]), char(), cache_dir=sys.argv[2])
"""


def char() -> FixedTrainer:
    """A tokenizer to which most of the text is unknown, so that its tokens stand for several numbers of bytes."""
    return FixedTrainer(CharTrainer().train(["It was a bright cold day"]).covering(["—"]))


def bpe() -> BPETrainer:
    return BPETrainer(vocab_size=280, min_frequency=2, special_tokens=["<|endoftext|>"])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Documents of 1 to 4,000 characters; the last, which is long, has characters of its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(14):
        (folder / f"{i:02}.txt").write_text(
            (SENTENCE * (i % 5 * 9 + 1))[: 1 if i == 3 else None] + f"No. {i}" * (i > 3)
        )
    (folder / "14.txt").write_text("".join(chr(0x4E00 + i % 97) for i in range(800)) + "\n" * 50)
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cache, "SHARD_TOKENS", SHARD)
    monkeypatch.setitem(encode_documents.__kwdefaults__, "piece", PIECE)
    monkeypatch.setitem(encode_documents.__kwdefaults__, "batch", BATCH)


def prepared(texts: Path, cache: Path, trainer: TokenizerTrainer | None = None) -> TokenData:
    return prepare(text_corpus(texts), trainer or char(), cache_dir=cache)


def files_of(data: TokenData) -> dict[str, bytes]:
    """The content of a cache, without the times of its files."""
    return {file.name: file.read_bytes() for file in data.path.iterdir() if file.name != "checked.json"}


def durable_tokens(cache: Path) -> int:
    """Tokens in the finished shards of an unfinished cache, over both splits."""
    [work] = (cache / "tokens").glob(".tmp-*")
    lines = (work / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    shards = [record for record in map(json.loads, lines) if "split" in record]
    return sum({shard["split"]: shard["ids"]["tokens"] for shard in shards}.values())


def snapshots(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: TokenizerTrainer) -> list[Path]:
    """The cache as a SIGKILL after each shard would leave it: journal and ids so far, and what the kill cut off."""
    taken: list[Path] = []

    def snapshot(point: str) -> None:
        if point == "prepare:shard":
            taken.append(shutil.copytree(tmp_path / "killed", tmp_path / f"after-{len(taken)}"))
            [work] = (taken[-1] / "tokens").glob(".tmp-*")
            for file in work.glob("*.bin"):
                with file.open("ab") as stream:
                    stream.write(b"\1\2\3")  # ids that were written after the last durable ones
            with (work / "journal.jsonl").open("ab") as stream:
                stream.write(b'{"split": "train", "ids": {"tok')

    with monkeypatch.context() as patch:
        patch.setattr(journal, "fault", snapshot)
        prepared(texts, tmp_path / "killed", trainer)
    return taken


@pytest.mark.parametrize("trainer", [pytest.param(bpe(), marks=pytest.mark.slow), char()], ids=["bpe", "char"])
def test_killed_after_any_shard(texts: Path, tmp_path: Path, monkeypatch, trainer: TokenizerTrainer) -> None:
    expected = prepared(texts, tmp_path / "whole", trainer)
    assert (expected.train.exceptions.size > 0) == isinstance(trainer, FixedTrainer)
    taken = snapshots(texts, tmp_path, monkeypatch, trainer)
    assert len(taken) > 5
    encoded: list[int] = []
    write = TokenWriter.write
    monkeypatch.setattr(TokenWriter, "write", lambda self, ids, n: (encoded.append(len(ids)), write(self, ids, n))[1])
    total = expected.train.n_tokens + expected.val.n_tokens
    for cache in taken:
        encoded.clear()
        finished = durable_tokens(cache)
        data = prepared(texts, cache, trainer)
        assert sum(encoded) == total - finished < total
        assert files_of(data) == files_of(expected)
        assert data.fingerprint == expected.fingerprint and data.notes == expected.notes
        assert not list((cache / "tokens").glob(".tmp-*"))
    assert finished == total  # killed after the last one


def test_ids_that_were_damaged_after_the_kill_are_written_anew(texts: Path, tmp_path: Path, monkeypatch) -> None:
    expected = prepared(texts, tmp_path / "whole")
    taken = snapshots(texts, tmp_path, monkeypatch, char())
    damages: list[Callable[[Path], object]] = [
        lambda work: flip(work / "train.bin"),
        lambda work: flip(work / "train.exceptions"),
        lambda work: os.truncate(work / "train.bin", 10),
        lambda work: (work / "val.bin").unlink(),
        lambda work: flip(work / "tokenizer.json"),
        lambda work: flip(work / "journal.jsonl"),
        lambda work: (work / "journal.jsonl").unlink(),
    ]
    for damage in damages:
        cache = shutil.copytree(taken[-2], tmp_path / "damaged")
        [work] = (cache / "tokens").glob(".tmp-*")
        damage(work)
        assert files_of(prepared(texts, cache)) == files_of(expected)
        assert not list((cache / "tokens").glob(".tmp-*"))
        shutil.rmtree(cache)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def test_a_text_that_was_touched_after_the_kill_is_prepared_from_its_beginning(
    texts: Path, tmp_path: Path, monkeypatch
) -> None:
    """The killed process may have read something else in between."""
    expected = files_of(prepared(texts, tmp_path / "whole"))
    taken = snapshots(texts, tmp_path, monkeypatch, char())
    [work] = (taken[-1] / "tokens").glob(".tmp-*")
    ids = work / "train.bin"
    ids.write_bytes(bytes(len(ids.read_bytes())))
    content = (texts / "05.txt").read_bytes()
    (texts / "05.txt").write_bytes(b"something else")
    (texts / "05.txt").write_bytes(content)
    assert files_of(prepared(texts, taken[-1])) == expected


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to a different user")
def test_what_a_different_user_left_is_not_used(texts: Path, tmp_path: Path, monkeypatch) -> None:
    expected = files_of(prepared(texts, tmp_path / "whole"))
    cache = snapshots(texts, tmp_path, monkeypatch, char())[-1]
    [work] = (cache / "tokens").glob(".tmp-*")
    for file in work.iterdir():
        os.chown(file, 12345, 12345)
    data = prepared(texts, cache)
    assert files_of(data) == expected
    assert all(file.stat().st_uid == 0 for file in data.path.iterdir())


def test_a_beginning_is_kept_for_a_month_and_other_leftovers_are_not(tmp_path: Path) -> None:
    folders = {name: tmp_path / f".tmp-{name}-x" for name in ("0a", "0b", "0c", "0d")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "tokenizer.json").touch()
        if name != "0b":
            (folder / "journal.jsonl").touch()
    os.utime(folders["0c"] / "journal.jsonl", (time.time() - 31 * 86400,) * 2)
    (folders["0d"] / "tokenizer.json").unlink()
    held = try_lock(tmp_path / "0d.lock")  # its process lives
    assert held is not None
    remove_stale(tmp_path, "0e")
    os.close(held)
    assert [name for name, folder in folders.items() if folder.exists()] == ["0a", "0d"]


def test_ctrl_c_keeps_what_is_finished_and_an_error_does_not(texts: Path, tmp_path: Path, monkeypatch) -> None:
    for error, stays in ((KeyboardInterrupt, True), (OSError, False)):
        passed = iter(range(100))

        def stop(point: str, *, error: type[BaseException] = error, passed=passed) -> None:
            if next(passed) == 4:
                raise error

        monkeypatch.setattr(journal, "fault", stop)
        with pytest.raises(BaseException):  # noqa: B017 - one of two
            prepared(texts, tmp_path / error.__name__)
        assert bool(list((tmp_path / error.__name__ / "tokens").glob(".tmp-*"))) == stays


def test_a_writer_refuses_files_that_are_shorter(tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "x.bin", IdsTokenizer(vocab_size=10)
    with TokenWriter(file, tokenizer) as writer:
        writer.write(np.arange(9), None)
        durable = writer.commit()
    os.truncate(file, 8)
    with pytest.raises(DamagedIdsError, match=r"x\.bin"):
        TokenWriter(file, tokenizer, after=durable)


@pytest.mark.slow
def test_kill_9(texts: Path, tmp_path: Path) -> None:
    expected = prepared(texts, tmp_path / "whole")
    tokens = []
    for _ in range(3):  # killed three times in a row, each time two shards further
        argv = [sys.executable, "-c", WORKER, str(texts), str(tmp_path / "cache")]
        killed = subprocess.run(argv, env=os.environ | {"TINYLLM_FAULT": "kill@prepare:shard:2"}, check=False)
        assert killed.returncode == -9
        tokens.append(durable_tokens(tmp_path / "cache"))
    assert tokens == sorted(set(tokens))
    assert files_of(prepared(texts, tmp_path / "cache")) == files_of(expected)
