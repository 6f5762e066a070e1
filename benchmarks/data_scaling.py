"""Scaling of data preparation in time and memory: ``python benchmarks/data_scaling.py``.

Three questions, each measured in separate processes:

- Many files: how long does a run need to load 100,000 files from the cache, and how many files does it open?
- Large documents: how much time and memory does it take to prepare one document of 1 to 50 MB, as a text file and as a
  JSON line, for each kind of tokenizer?
- JSON lines: how much do non-ASCII characters slow reading down?

Linux only. Reports CPU seconds, which other programs barely affect. The text consists of common words.
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
"""Document sizes in megabytes."""
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
    """The corpus for a file, chosen by its suffix, or for a folder of texts."""
    settings: dict[str, Any] = {"path": str(path), "val_path": None, "val_fraction": 0.1, "errors": "strict"}
    return JsonlCorpus(field="text", **settings) if path.suffix == ".jsonl" else TextCorpus(**settings)


def words(size: int, seed: int = 0) -> str:
    """``size`` characters of common words in random order."""
    text = " ".join(random.Random(seed).choices(WORDS, k=200_000))
    return (text * (size // len(text) + 1))[:size]


def most_resident() -> float:
    """Peak resident memory of this process in megabytes; getrusage would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def in_process(tokenizer: str, path: Path, cache: Path) -> dict[str, float]:
    """Prepare a corpus in its own process; returns CPU seconds, megabytes and the number of files opened."""
    argv = [sys.executable, __file__, tokenizer, str(path), str(cache)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def measure(tokenizer: str, path: Path, cache: Path) -> None:
    """Entry point of the process that ``in_process`` starts."""
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
    """Prepare a folder of many files, then load it from the cache twice."""
    texts = folder / "many"
    for i in range(N_FILES):
        if i % 1000 == 0:
            (texts / f"{i // 1000:03}").mkdir(parents=True)
        (texts / f"{i // 1000:03}" / f"{i:06}.txt").write_text(f"file {i} with a few words in it\n")
    time.sleep(2.1)  # a file changed within the last 2 s is hashed again at the next start
    for label in ("prepared", "from the cache", "again"):
        figures = in_process("char", texts, folder / "cache")
        print(
            f"{N_FILES:,} files, {label:15} {figures['seconds']:5.1f} s of CPU, {figures['wall']:5.1f} s,"
            f" {figures['opened']:7,} opens, {figures['megabytes']:4.0f} MB resident"
        )


def large_documents(folder: Path) -> None:
    """Prepare single documents of growing size."""
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
    """Prepare 50 MB of JSON lines, in ASCII and with one non-ASCII character per line."""
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
