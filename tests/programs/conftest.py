"""Good and bad inputs of the programs."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.bad_conversations import WRONG_CONVERSATIONS
from tests.support.chats import record, write_records
from tests.support.hub_sets import tinystories, wikitext
from tests.support.preferences import write_preferences
from tests.support.training_runs import SMALL, train, write_corpus


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of good and bad inputs: texts, a finished run, damaged copies of it."""
    place = tmp_path_factory.mktemp("inputs")
    write_corpus(place / "good.txt", n_words=400)
    (place / "other.txt").write_text("hello world, cat\n" * 99)
    (place / "empty.txt").write_text("")
    (place / "blank.txt").write_text(" \n\t\n" * 50)
    (place / "short.txt").write_text("a b c")
    (place / "line.txt").write_text("hello world, cat")
    (place / "bad_utf8.txt").write_bytes(b"ok " * 100 + b"\xff\xfe" + b"ok " * 100)
    (place / "utf16.txt").write_bytes(("hello " * 100).encode("utf-16"))
    (place / "text.txt.gz").write_bytes(gzip.compress(b"some text " * 99)[:-4])
    (place / "paper.pdf").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    np.arange(500, dtype=np.uint16).tofile(place / "train.bin")
    (place / "odd.bin").write_bytes(bytes(range(1, 100)))
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240521, 1, 10
    (place / "magic.bin").write_bytes(header.tobytes() + bytes(20))
    header[0] = 20240520
    (place / "short_shard.bin").write_bytes(header.tobytes() + bytes(18))
    table = pyarrow.table({"story": ["Once upon a time."] * 99, "stars": list(range(99))})
    pyarrow.parquet.write_table(table, place / "table.parquet")
    (place / "cut.parquet").write_bytes((place / "table.parquet").read_bytes()[:-99])
    wikitext(place / "wikitext", articles=10)
    tinystories(place / "empty_set", stories=0)
    np.save(place / "flat.npy", np.arange(99))
    (place / "array.json").write_text('[{"text": "one"}]')
    os.mkfifo(place / "pipe")
    (place / "no_text").mkdir()
    (place / "no_text" / "picture.bin").write_bytes(bytes(range(256)))
    (place / "lines.jsonl").write_text('{"text": "one"}\n{"texd": "two"}\n')
    np.save(place / "floats.npy", np.zeros((4, 8), dtype=np.float32))
    np.save(place / "rows.npy", np.arange(640).reshape(20, 32))
    np.save(place / "negative.npy", np.full((20, 32), -1, dtype=np.int64))
    write_preferences(place / "pairs.jsonl", n_pairs=20)
    write_records(place / "chats.jsonl", [record(seed, tools=False) for seed in range(12)])
    for name, wrong in WRONG_CONVERSATIONS.items():
        write_records(place / f"{name}.jsonl", [wrong])
    (place / "torn.jsonl").write_text('{"messages": [}\n')
    said = "{% generation %}{{ messages[-1].content }}<eos>{% endgeneration %}"
    (place / "changing.jinja").write_text(f"{{{{ messages | length }}}}{said}")
    (place / "prompts.jsonl").write_text("".join(f'{{"prompt": "a{i}"}}\n' for i in range(40)))
    (place / "same.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    data = ("dataset=text", f"dataset.path={place / 'good.txt'}")
    assert train(*SMALL, *data, "trainer.max_steps=2", f"run.dir={place / 'run'}") == 0
    for name, file in (("cut", "state.pt"), ("flipped", "model.safetensors"), ("html", "manifest.json")):
        shutil.copytree(place / "run", place / name)
        for path in (place / name).glob(f"checkpoints/step-*/{file}"):
            whole = path.read_bytes()
            damaged = {
                "cut": whole[: len(whole) // 2],
                "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
                "html": b"<html>404</html>",
            }
            path.write_bytes(damaged[name])
    shutil.copytree(place / "run", place / "talking")
    for checkpoint in (place / "talking" / "checkpoints").glob("step-*"):
        (checkpoint / "chat_template.jinja").write_text(said)
    (place / "other_project").mkdir()
    (place / "other_project" / "model.pt").write_bytes(b"PK")
    return place
