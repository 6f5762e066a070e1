"""Encoding in several processes: the same ids, whatever happens to the processes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.tokenizers.kinds import built
from tinyllm.data import encode
from tinyllm.data.corpus import Document
from tinyllm.data.encode import encode_documents
from tinyllm.data.encoding_pool import EncodingPool
from tinyllm.data.text_batch import EncodingStats, TextBatch, encode_batch
from tinyllm.errors import UserError
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen; 'twas 1984 — déjà vu 😀.\n"


def batch_of(*texts: str) -> TextBatch:
    batch = TextBatch()
    for text in texts:
        batch.add(text, len(text))
    return batch


def documents() -> list[Document]:
    texts = [SENTENCE * 20, "", "   ", "中文，日本語。" * 30, "x"]
    return [Document(b"", len(text), lambda text=text: iter((text,)), b"") for text in texts]


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("unigram", marks=pytest.mark.slow)])
def test_the_result_does_not_depend_on_the_processes(kind: str, monkeypatch) -> None:
    """Ids, byte counts and statistics; unigram has byte counts per token and unknown characters."""
    tokenizer = HuggingFaceTokenizer.from_json(built(kind))

    def encoded(processes: int) -> tuple[list, list, EncodingStats]:
        monkeypatch.setattr(encode, "usable_cpus", lambda: processes)
        stats = EncodingStats()
        parts = list(encode_documents(tokenizer, documents(), piece=50, batch=300, stats=stats))
        usual = tokenizer.token_bytes()
        lengths = [usual[ids] if found is None else found for ids, found, _ in parts]
        return np.concatenate([ids for ids, _, _ in parts]).tolist(), np.concatenate(lengths).tolist(), stats

    monkeypatch.setattr(encode, "ALONE", 200)
    alone = encoded(1)
    assert encoded(2) == alone
    text = "".join(chunk for document in documents() for chunk in document.chunks())
    assert sum(alone[1]) == len(text.encode())


def test_a_killed_process_is_one_error() -> None:
    tokenizer = HuggingFaceTokenizer.from_json(built("gpt2"))
    with EncodingPool(tokenizer, 1) as pool:
        assert len(list(pool.encode([batch_of("warm")]))) == 1
        pool._processes[0].kill()
        with pytest.raises(UserError, match="a process that encodes the text was killed"):
            list(pool.encode([batch_of(SENTENCE)]))


def test_errors_come_back() -> None:
    """An error that the user can fix stays one; any other shows where it happened."""
    tokenizer = HuggingFaceTokenizer.from_json(built("gpt2"))
    with EncodingPool(tokenizer, 1) as pool:
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*encode_measured"):
            list(pool.encode([TextBatch(texts=[7], slots=[0])]))
        good = batch_of(SENTENCE)
        [encoded] = pool.encode([good])  # the process goes on
        assert encoded.ids.tolist() == encode_batch(tokenizer, good).ids.tolist()


@pytest.mark.slow
def test_no_process_outlives_a_killed_program() -> None:
    code = """
import os, signal
from tests.tokenizers.kinds import built
from tinyllm.data.encoding_pool import EncodingPool
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
pool = EncodingPool(HuggingFaceTokenizer.from_json(built("gpt2")), 2)
print(*(process.pid for process in pool._processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    children = [int(pid) for pid in out.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(map(_is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stream:
        return stream.read().rpartition(")")[2].split()[0] != "Z"
