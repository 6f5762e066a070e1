"""Tokenization throughput and memory: ``python benchmarks/encode_speed.py``.

Encodes 20 MB with a BPE of 8,000 entries, on one thread and on all, in interleaved processes, and 100 MB with char and
byte; all through the stream that fills the token cache. Then runs the whole of ``prepare`` with char on 20 MB and
200 MB and reports the peak resident memory, which must not grow with the text.

The text is the embedded corpus ``pydocs``, repeated. Figures are medians over the runs.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.encode import encode_documents
from tinyllm.data.prepare import prepare
from tinyllm.data.pydocs import PydocsCorpus
from tinyllm.data.text import TextCorpus
from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTrainer

MB = 10**6
REPEATS = 5


def corpus(path: Path) -> TextCorpus:
    """The file at ``path`` as one document."""
    return TextCorpus(path=str(path), val_path=None, val_fraction=0.1, errors="strict")


def encode_seconds(text: Path, tokenizer: Tokenizer) -> float:
    """Seconds to read and encode the file, without writing the cache."""
    with tempfile.TemporaryDirectory() as folder:
        source = corpus(text).open(ContentHashes(Path(folder)))
        start = time.perf_counter()
        for _ in encode_documents(tokenizer, source.documents()):
            pass
        return time.perf_counter() - start


def in_process(task: str, text: Path, other: Path, **environment: str) -> dict[str, float]:
    """Run one of the tasks below in its own process."""
    argv = [sys.executable, __file__, task, str(text), str(other)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True, env=os.environ | environment).stdout
    return json.loads(out)


def run_task(task: str, text: Path, other: Path) -> None:
    """Entry point of the process that ``in_process`` starts; prints the figures as JSON."""
    start = time.perf_counter()
    if task == "encode":
        tokenizer = load(other)
        tokenizer.encode_batch(["warm up"] * 100)
        seconds = encode_seconds(text, tokenizer)
    else:
        prepare(corpus(text), CharTrainer(), cache_dir=other)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def write_text(path: Path, size: int, prose: bytes) -> Path:
    """``prose`` repeated to ``size`` bytes."""
    with open(path, "wb") as stream:
        for _ in range(size // len(prose)):
            stream.write(prose)
        stream.write(prose[: size % len(prose)])
    return path


def main() -> None:
    if len(sys.argv) > 1:
        run_task(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = PydocsCorpus(val_fraction=0.1).open(ContentHashes(folder)).documents()
        prose = "".join(chunk for document in documents for chunk in document.chunks()).encode()
        small = write_text(folder / "20MB.txt", 20 * MB, prose)
        large = write_text(folder / "100MB.txt", 100 * MB, prose)

        trainer = BPETrainer(vocab_size=8000, min_frequency=2, special_tokens=["<|endoftext|>"])
        trainer.train([prose.decode()]).save(folder / "tokenizer.json")
        seconds: dict[str, list[float]] = {"one": [], "all": []}
        for _ in range(REPEATS):
            for threads, environment in (("one", {"RAYON_NUM_THREADS": "1"}), ("all", {})):
                result = in_process("encode", small, folder / "tokenizer.json", **environment)
                seconds[threads].append(result["seconds"])
        one, many = (statistics.median(seconds[threads]) for threads in ("one", "all"))
        print(f"bpe 8k, 20 MB    one thread {20 / one:6.1f} MB/s   {os.cpu_count()} threads {20 / many:6.1f} MB/s")
        print(
            f"                 ratio {one / many:.2f}   all: {[round(s, 2) for s in seconds['one'] + seconds['all']]}"
        )

        for label, tokenizer in (("char", CharTrainer().train([prose.decode()])), ("byte", ByteTokenizer())):
            times = [encode_seconds(large, tokenizer) for _ in range(REPEATS)]
            print(
                f"{label}, 100 MB     {100 / statistics.median(times):6.0f} MB/s   all: {[round(s, 2) for s in times]}"
            )

        huge = write_text(folder / "200MB.txt", 200 * MB, prose)
        for size, text in ((20, small), (200, huge)):
            result = in_process("prepare", text, folder / f"cache{size}")
            print(
                f"prepare char, {size:3} MB: {size / result['seconds']:4.0f} MB/s from reading to the cache on disk, "
                f"resident memory at most {result['kilobytes'] / 1000:.0f} MB"
            )


if __name__ == "__main__":
    main()
