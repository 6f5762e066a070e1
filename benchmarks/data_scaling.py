"""That data preparation takes time and memory in proportion: ``python benchmarks/data_scaling.py``.

Three questions, each answered in processes of their own:

- many files: how long the data of a run take to start from the cache where they are 100,000 files, and how many
  files are opened for it;
- large documents: seconds and resident memory of preparing one document of 1 to 50 MB, as a text file and as a line
  of JSON, for each kind of tokenizer;
- JSON lines: the same lines in ASCII and with one other character each.

Linux only. Seconds are those of the processor, which other programs do not lengthen much. The text is made of common
words.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tinyllm.data.file_corpus import FileCorpus
from tinyllm.data.jsonl import JsonlCorpus
from tinyllm.data.prepare import prepare
from tinyllm.data.text import TextCorpus
from tinyllm.tokenizers import TokenizerTrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer

MB = 10**6
N_FILES = 100_000
SIZES = (1, 5, 10, 20, 50)
"""Megabytes of a document."""
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "as",
    "with",
    "his",
    "they",
    "be",
    "word",
)
TOKENIZERS: dict[str, Callable[[], TokenizerTrainer]] = {"byte": ByteTrainer, "char": CharTrainer}


def corpus(path: Path) -> FileCorpus:
    """The data set for a file, by its ending, or for a folder of texts."""
    settings: dict[str, Any] = {"path": str(path), "val_path": None, "val_fraction": 0.1, "errors": "strict"}
    return JsonlCorpus(field="text", **settings) if path.suffix == ".jsonl" else TextCorpus(**settings)


def words(size: int, seed: int = 0) -> str:
    """Common words in random order, ``size`` characters."""
    text = " ".join(random.Random(seed).choices(WORDS, k=200_000))
    return (text * (size // len(text) + 1))[:size]


def most_resident() -> float:
    """Megabytes of memory that this process had at most; getrusage would count what its parent had before it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def in_process(tokenizer: str, path: Path, cache: Path) -> dict[str, float]:
    """Prepares a data set in a process of its own: its seconds, megabytes and how many texts it opened."""
    argv = [sys.executable, __file__, tokenizer, str(path), str(cache)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def measure(tokenizer: str, path: Path, cache: Path) -> None:
    """What ``in_process`` starts."""
    opened = 0

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal opened
        opened += str(file).startswith(str(path))
        return real(file, *args, **kwargs)

    real = open
    start, wall = time.process_time(), time.perf_counter()
    with mock.patch("builtins.open", counting):
        data = corpus(path)
        data.check()
        prepare(data, TOKENIZERS[tokenizer](), cache_dir=cache)
    figures = {
        "seconds": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "megabytes": most_resident(),
        "opened": opened,
    }
    print(json.dumps(figures))


def many_files(folder: Path) -> None:
    """Prepares a folder of many files, then starts from the cache twice."""
    texts = folder / "many"
    for i in range(N_FILES):
        if i % 1000 == 0:
            (texts / f"{i // 1000:03}").mkdir(parents=True)
        (texts / f"{i // 1000:03}" / f"{i:06}.txt").write_text(f"file {i} with a few words in it\n")
    time.sleep(2.1)  # a file that has just changed is hashed again at the next start
    for label in ("prepared", "from the cache", "again"):
        figures = in_process("char", texts, folder / "cache")
        print(
            f"{N_FILES:,} files, {label:15} {figures['seconds']:5.1f} s of CPU, {figures['wall']:5.1f} s,"
            f" {figures['opened']:7,} opens, {figures['megabytes']:4.0f} MB resident"
        )


def large_documents(folder: Path) -> None:
    """Prepares single documents of growing size."""
    for tokenizer in TOKENIZERS:
        for ending in ("txt", "jsonl"):
            for size in SIZES:
                text = words(size * MB - 1) + "€"
                file = folder / f"{size}.{ending}"
                file.write_text(text if ending == "txt" else json.dumps({"text": text}, ensure_ascii=False) + "\n")
                figures = in_process(tokenizer, file, folder / f"cache-{tokenizer}-{ending}-{size}")
                print(
                    f"{tokenizer:5} {ending:5} {size:3} MB {figures['seconds']:6.2f} s of CPU,"
                    f" {figures['seconds'] / size:5.3f} s/MB, {figures['megabytes']:4.0f} MB resident"
                )
                file.unlink()


def json_lines(folder: Path) -> None:
    """Prepares 50 MB of JSON lines in ASCII, and with one more character per line."""
    text = words(MB)
    for label, extra in (("ASCII", "e"), ("one é a line", "é"), ("one 😀 a line", "😀")):
        file = folder / "lines.jsonl"
        with open(file, "w", encoding="utf-8") as stream:
            for i in range(20_000):
                line = {"text": f"{extra} {text[37 * i % 900_000 :][:2500]} {i}"}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        figures = in_process("byte", file, folder / f"cache-{label}")
        print(f"JSON lines, 50 MB, {label:13} {figures['seconds']:5.2f} s of CPU")


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return
    for question in (json_lines, large_documents, many_files):
        with tempfile.TemporaryDirectory() as name:
            question(Path(name))


if __name__ == "__main__":
    main()
