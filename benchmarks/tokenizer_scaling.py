"""Scaling of tokenizers with the text: ``python benchmarks/tokenizer_scaling.py``.

- Learns byte-level BPE on 2 MB of words plus 0 to 4 MB of letters without a space, with the limit on word length
  (``tokenizer.max_word``) and, if that takes less than a minute, without.
- Streams 500 to 8,000 tokens as text, as generation shows them, with tokenizers whose text depends on neighbours.
- Encodes prompts of 40,000 to 160,000 characters in one piece.
- Encodes documents of 1 to 12 MB through the stream that fills the token cache, each in its own process, and reports
  seconds and peak resident memory. Arguments select the kinds of tokenizers.

The tokenizers come from ``tests/tokenizers/kinds.py``. Their vocabularies are so small that nearly every character is a
token, so time and memory per MB are higher than for real ones. The text is the embedded corpus ``pydocs``.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.tokenizers.kinds import built
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Document
from tinyllm.data.encode import encode_documents
from tinyllm.data.pydocs import PydocsCorpus
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

MB = 10**6
RUNS = (0, 1, 2, 4)
STREAMS = (500, 1000, 2000, 4000, 8000)
PROMPTS = (40_000, 80_000, 160_000)
SIZES = (1, 4, 12)
STREAMED = ("metaspace always", "llama", "unigram", "word piece")
DOCUMENTS = ("gpt2", "qwen2", "llama", "metaspace always", "unigram", "word piece", "word level")


@cache
def corpus() -> str:
    """The text of ``pydocs``, collected once because that takes longer than most measurements here."""
    with tempfile.TemporaryDirectory() as folder:
        documents = PydocsCorpus(val_fraction=0.1).open(ContentHashes(Path(folder))).documents()
        return "".join(chunk for document in documents for chunk in document.chunks())


def prose(size: int) -> str:
    """English text of ``size`` characters."""
    text = corpus()
    return (text * (size // len(text) + 1))[:size]


def learn_seconds(run: int, limit: int | None) -> float:
    """Seconds to learn 8,000 entries from 2 MB of words and ``run`` MB of DNA."""
    words = prose(2 * MB)
    text = words[:MB] + "".join(random.Random(1).choices("acgt", k=run * MB)) + words[MB:]
    trainer = BPETrainer(vocab_size=8000, min_frequency=2, special_tokens=["<|endoftext|>"], max_word=limit)
    start = time.process_time()
    trainer.train(trainer.pieces([text]), size=len(text))
    return time.process_time() - start


def stream_seconds(kind: str, n: int) -> float:
    """Seconds to stream ``n`` tokens as text."""
    tokenizer = HuggingFaceTokenizer.from_json(built(kind))
    ids = tokenizer.encode(prose(20 * n))[:n].tolist()
    start = time.process_time()
    stream = tokenizer.stream()
    shown = "".join(map(stream.push, ids)) + stream.flush()
    seconds = time.process_time() - start
    assert shown == tokenizer.decode(ids)
    return seconds


def prompt_seconds(kind: str, size: int) -> float:
    """Seconds to encode a prompt of ``size`` characters, including the check for unknown characters."""
    tokenizer, text = HuggingFaceTokenizer.from_json(built(kind)), prose(size)
    start = time.process_time()
    with suppress(UserError):  # its small vocabulary lacks a token for some character
        tokenizer.encode(text, strict=True)
    return time.process_time() - start


def encode_task(kind: str, size: int) -> None:
    """Encode one document of ``size`` MB in this process; prints seconds and peak resident memory in kB."""
    tokenizer, text = HuggingFaceTokenizer.from_json(built(kind)), prose(MB)
    start = time.process_time()
    document = Document(digest=b"", text_digest=b"", size=size * MB, chunks=lambda: (text for _ in range(size)))
    n_tokens = sum(len(text.ids) for text in encode_documents(tokenizer, [document]))
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "tokens": n_tokens, "kilobytes": peak}))


def in_process(*arguments: object, limit: float | None = None) -> dict[str, float] | None:
    """Output of the task; None if it took longer than ``limit`` seconds."""
    argv = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        out = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    figures: dict[str, float] = json.loads(out.stdout)
    return figures


def report_learning() -> None:
    print("CPU seconds to learn from 2 MB of words and … MB without a blank")
    for run in RUNS:
        limited, free = in_process("learn", run, 256), in_process("learn", run, None, limit=60)
        without = "more than 60" if free is None else f"{free['seconds']:.1f}"
        assert limited is not None
        print(f"  {run} MB: {limited['seconds']:.1f} with max_word=256, {without} without", flush=True)


def report_streams() -> None:
    print("milliseconds to show a stream of … tokens")
    for kind in STREAMED:
        figures = [f"{n:,}: {1000 * min(stream_seconds(kind, n) for _ in range(3)):.1f}" for n in STREAMS]
        print(f"  {kind:18}", ", ".join(figures), flush=True)


def report_prompts() -> None:
    print("milliseconds to encode a prompt of … characters")
    for kind in STREAMED:
        figures = [f"{n:,}: {1000 * min(prompt_seconds(kind, n) for _ in range(3)):.0f}" for n in PROMPTS]
        print(f"  {kind:18}", ", ".join(figures), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["encode"]:
        encode_task(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["learn"]:
        limit = None if sys.argv[3] == "None" else int(sys.argv[3])
        print(json.dumps({"seconds": learn_seconds(int(sys.argv[2]), limit)}))
        return
    chosen = sys.argv[1:]
    if not chosen:
        report_learning()
        report_streams()
        report_prompts()
    print("one document: CPU seconds, largest resident memory")
    for kind in chosen or DOCUMENTS:
        row = []
        for size in SIZES:
            result = in_process("encode", kind, size)
            assert result is not None
            row.append(f"{size} MB: {result['seconds']:.1f} s, {result['kilobytes'] / 1000:.0f} MB")
        print(f"  {kind:18}", "; ".join(row), flush=True)


if __name__ == "__main__":
    main()
