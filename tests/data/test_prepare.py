"""Preparing data from files to ids: streaming, kills, concurrent processes."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import text_corpus
from tinyllm.data import encode, files
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.encode import encode_documents
from tinyllm.data.prepare import cached, prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer

SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen; 'twas 1984 — déjà vu.\n"

# A process that prepares a text. It may kill itself at a stage, or take its time there.
WORKER = """
import json, os, signal, sys, time
from tests.data.conftest import text_corpus
from tinyllm.data.prepare import prepare
from tinyllm.tokenizers.bpe import BPETrainer
path, cache, kill_at, seconds = sys.argv[1:]
stages = []
def progress(stage, done, total):
    if stage not in stages:
        stages.append(stage)
        if stage == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(seconds))
trainer = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"])
data = prepare(text_corpus(path), trainer, cache_dir=cache, progress=progress)
print(json.dumps({"stages": stages, "fingerprint": data.fingerprint, "notes": data.notes}))
"""


def start(path: Path, cache: Path, kill_at: str = "", seconds: float = 0) -> subprocess.Popen:
    argv = [sys.executable, "-c", WORKER, str(path), str(cache), kill_at, str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE * 200)
    return file


def bpe() -> BPETrainer:
    return BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"])


@pytest.mark.parametrize("stage", ["reading", "learning the vocabulary", "tokenizing"])
@pytest.mark.every(3)
def test_killed_while_preparing(text: Path, tmp_path: Path, stage: str) -> None:
    """No partial cache is used, nothing is left behind, and the result equals that of an undisturbed run."""
    killed = start(text, tmp_path / "cache", kill_at=stage)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    tokens = tmp_path / "cache" / "tokens"
    assert [folder for folder in tokens.iterdir() if folder.name.startswith(".tmp-")]
    assert cached(text_corpus(text), bpe(), cache_dir=tmp_path / "cache") is None
    data = prepare(text_corpus(text), bpe(), cache_dir=tmp_path / "cache")
    clean = prepare(text_corpus(text), bpe(), cache_dir=tmp_path / "clean")
    assert data.fingerprint == clean.fingerprint
    assert data.notes == clean.notes
    assert not [folder for folder in tokens.iterdir() if folder.name.startswith(".tmp-")]


@pytest.mark.slow
def test_leftovers_are_removed_but_not_those_of_a_living_process(text: Path, tmp_path: Path) -> None:
    other, third = tmp_path / "other.txt", tmp_path / "third.txt"
    other.write_text(SENTENCE[:50] * 100)
    third.write_text(SENTENCE[:60] * 100)
    living = start(third, tmp_path / "cache", seconds=1.2)
    tokens = tmp_path / "cache" / "tokens"
    while not list(tokens.glob(".tmp-*")):
        assert living.poll() is None
        time.sleep(0.02)
    start(other, tmp_path / "cache", kill_at="learning the vocabulary").communicate(timeout=60)
    assert len(list(tokens.glob(".tmp-*"))) == 2
    prepare(text_corpus(text), bpe(), cache_dir=tmp_path / "cache")
    assert len(list(tokens.glob(".tmp-*"))) == 1
    result(living)
    assert list(tokens.glob(".tmp-*")) == []


@pytest.mark.slow
def test_two_processes_build_once(text: Path, tmp_path: Path) -> None:
    rivals = [start(text, tmp_path / "cache", seconds=0.3) for _ in range(2)]
    results = [result(rival) for rival in rivals]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
    builders = [r for r in results if "tokenizing" in r["stages"]]
    assert len(builders) == 1
    for other in (r for r in results if r is not builders[0]):
        assert other["stages"] in ([], ["waiting for another process that prepares these data"])


def test_a_waiting_process_takes_over_when_the_builder_is_killed(text: Path, tmp_path: Path) -> None:
    builder = start(text, tmp_path / "cache", seconds=30)
    while not list((tmp_path / "cache").glob("tokens/.tmp-*")):
        assert builder.poll() is None
        time.sleep(0.02)
    stages: list[str] = []
    waiting = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        waiting.set()

    found: list = []
    waiter = threading.Thread(
        target=lambda: found.append(prepare(text_corpus(text), bpe(), cache_dir=tmp_path / "cache", progress=progress))
    )
    waiter.start()
    assert waiting.wait(20)
    builder.kill()
    builder.communicate()
    waiter.join(20)
    assert stages[0] == "waiting for another process that prepares these data"
    assert "tokenizing" in stages
    assert found[0].train.n_tokens > 0


def test_ids_do_not_depend_on_how_the_text_is_streamed(tmp_path: Path, monkeypatch) -> None:
    """Whatever the sizes of reads, pieces and batches."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(SENTENCE * (i * 7 + 1))
    expected = prepare(text_corpus(folder), bpe(), cache_dir=tmp_path / "a")
    for name, chunk, piece, batch in (("b", 37, 11, 50), ("c", 1000, 100, 10**9), ("d", 5, 10**9, 1)):
        monkeypatch.setattr(files, "CHUNK", chunk)
        monkeypatch.setattr(encode_documents, "__kwdefaults__", {"piece": piece, "batch": batch})
        data = prepare(text_corpus(folder), bpe(), cache_dir=tmp_path / name)
        assert data.fingerprint == expected.fingerprint
    ids = expected.val.read(0, expected.val.n_tokens).tolist()
    whole = [expected.tokenizer.encode(SENTENCE * (i * 7 + 1)).tolist() for i in range(12)]
    while ids:  # each document of validation is what encoding it alone gives
        end = ids.index(expected.tokenizer.eot_id)
        assert ids[:end] in whole
        ids = ids[end + 1 :]


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """Peak memory for 100 MB of text exceeds that for 5 MB by far less than the difference."""
    code = """
import resource, sys
from tests.data.conftest import text_corpus
from tinyllm.data.prepare import prepare
from tinyllm.tokenizers.char import CharTrainer
prepare(text_corpus(sys.argv[1]), CharTrainer(), cache_dir=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for megabytes in (5, 100):
        file = tmp_path / f"{megabytes}.txt"
        with open(file, "w") as stream:
            for _ in range(megabytes):
                stream.write(SENTENCE * (10**6 // len(SENTENCE.encode())))
        argv = [sys.executable, "-c", code, str(file), str(tmp_path / "cache")]
        peaks.append(int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) * 1024)
        file.unlink()
    assert peaks[1] - peaks[0] < 20 * 2**20


@pytest.mark.parametrize("trainer", [CharTrainer(), ByteTrainer(), bpe()], ids=["char", "byte", "bpe"])
def test_bad_byte_late_in_the_text_is_one_error(tmp_path: Path, trainer) -> None:
    """Even if it surfaces inside the library that trains the tokenizer; and nothing is left behind."""
    file, n = tmp_path / "text.txt", files.CHUNK // len(SENTENCE.encode()) + 10  # beyond what is looked at first
    file.write_bytes(SENTENCE.encode() * n + b"\xfe" + SENTENCE.encode() * 10)
    with pytest.raises(UserError, match=f"byte 0xfe at offset {len(SENTENCE.encode()) * n}"):
        prepare(text_corpus(file), trainer, cache_dir=tmp_path / "cache")
    assert [f for f in (tmp_path / "cache" / "tokens").iterdir() if not f.name.endswith(".lock")] == []
    mended = prepare(text_corpus(file, errors="replace"), trainer, cache_dir=tmp_path / "cache")
    ids = mended.train.read(0, mended.train.n_tokens)
    both = mended.tokenizer.decode(ids) + mended.tokenizer.decode(mended.val.read(0, mended.val.n_tokens))
    assert both == (SENTENCE * n + "\ufffd" + SENTENCE * 10)


def test_literal_end_of_text_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one<|endoftext|>two " * 100)
    data = prepare(text_corpus(file), bpe(), cache_dir=tmp_path / "cache")
    ids = data.train.read(0, data.train.n_tokens)
    assert (ids == data.tokenizer.eot_id).sum() == 1  # the end of the document
    assert data.tokenizer.decode(ids) == ("one<|endoftext|>two " * 100)[:1800]


def test_progress(text: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path, progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["reading", "learning the vocabulary", "tokenizing"]
    assert all(0 <= done <= total for _, done, total in calls)
    calls.clear()
    prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path, progress=lambda *call: calls.append(call))
    assert calls == []


def test_text_that_changes_while_it_is_read_is_refused(text: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "tokenizing":
            text.write_text("something else " * 100)

    with pytest.raises(UserError, match="changed while it was being read"):
        prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path / "cache", progress=progress)
    assert [f for f in (tmp_path / "cache" / "tokens").iterdir() if not f.name.endswith(".lock")] == []


def test_numbers_and_text_do_not_mix(text: Path, tmp_path: Path) -> None:
    from tinyllm.tokenizers.ids import IdsTrainer

    with pytest.raises(UserError, match="the data are text, but the tokenizer is for numbers"):
        prepare(text_corpus(text), IdsTrainer(), cache_dir=tmp_path)


def test_few_entries_are_noted_warm_and_cold(text: Path, tmp_path: Path) -> None:
    trainer = BPETrainer(vocab_size=32000, min_frequency=2, special_tokens=["<|endoftext|>"])
    cold = prepare(text_corpus(text), trainer, cache_dir=tmp_path)
    assert "fewer than the 32,000 requested" in cold.notes[0]
    assert prepare(text_corpus(text), trainer, cache_dir=tmp_path).notes == cold.notes


def test_val_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdef" * 10)
    (tmp_path / "b.txt").write_text("fedcba" * 3)
    corpus = text_corpus(tmp_path / "a.txt", val_path=str(tmp_path / "b.txt"))
    data = prepare(corpus, CharTrainer(), cache_dir=tmp_path / "cache")
    assert data.tokenizer.decode(data.train.read(0, data.train.n_tokens)) == "abcdef" * 10
    assert data.tokenizer.decode(data.val.read(0, data.val.n_tokens)) == "fedcba" * 3


def test_read_beyond_the_end_is_an_error(text: Path, tmp_path: Path) -> None:
    data = prepare(text_corpus(text), CharTrainer(), cache_dir=tmp_path)
    for bounds in ((0, data.val.n_tokens + 1), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            data.val.read(*bounds)


def test_batches_are_small(text: Path, tmp_path: Path) -> None:
    source = text_corpus(text).open(ContentHashes(tmp_path))
    blocks = list(encode_documents(ByteTrainer().train([]), source.documents(), piece=100, batch=500))
    assert max(len(ids) for ids, _, _ in blocks) < 1200
    assert np.concatenate([ids for ids, _, _ in blocks])[:-1].tolist() == list((SENTENCE * 200).encode())
    assert encode.PIECE < encode.BATCH
