"""The corpora that are present on every machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.prepare import prepare
from tinyllm.data.pydocs import PydocsCorpus, prose
from tinyllm.data.stdlib import StdlibCorpus, source_files
from tinyllm.errors import UserError
from tinyllm.tokenizers.char import CharTrainer


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory: pytest.TempPathFactory):
    return prepare(PydocsCorpus(val_fraction=0.1), CharTrainer(), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_pydocs_is_english(pydocs) -> None:
    text = pydocs.tokenizer.decode(pydocs.train.read(0, pydocs.train.n_tokens))
    assert len(text) > 500_000
    assert text.isascii()
    words = [word.strip(".,;:()\"'").lower() for word in text.split()]
    common = sum(words.count(word) for word in ("the", "of", "to", "a", "is", "in", "and", "that", "be", "for"))
    assert common > 0.2 * len(words)  # as in any English prose
    assert ">>>" not in text
    assert "\n\n\n" not in text
    assert pydocs.notes == []


@pytest.mark.slow
def test_pydocs_split(pydocs) -> None:
    share = pydocs.val.n_tokens / (pydocs.train.n_tokens + pydocs.val.n_tokens)
    assert 0.09 < share <= 0.1
    paragraphs = [
        set(pydocs.tokenizer.decode(split.read(0, split.n_tokens)).split("\n\n"))
        for split in (pydocs.train, pydocs.val)
    ]
    assert not {p for p in paragraphs[0] & paragraphs[1] if len(p) > 100}


@pytest.mark.slow
def test_pydocs_is_the_same_in_another_process_with_a_different_hash_seed(pydocs, tmp_path: Path) -> None:
    code = """
import sys
from tinyllm.data.prepare import prepare
from tinyllm.data.pydocs import PydocsCorpus
from tinyllm.tokenizers.char import CharTrainer
print(prepare(PydocsCorpus(val_fraction=0.1), CharTrainer(), cache_dir=sys.argv[1]).fingerprint)
print(any(name in ("pydoc_data", "turtle", "antigravity") for name in sys.modules))
"""
    argv = [sys.executable, "-c", code, str(tmp_path)]
    env = os.environ | {"PYTHONHASHSEED": "1"}
    out = subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout
    assert out.split() == [pydocs.fingerprint, "False"]  # parsed, not imported


def test_stdlib_is_code(tmp_path: Path) -> None:
    source = StdlibCorpus(val_fraction=0.1).open(ContentHashes(tmp_path))
    texts = ["".join(document.chunks()) for document in source.documents()]
    assert len(texts) > 300
    assert 4e6 < sum(map(len, texts)) < 4e7
    assert sum("import" in text for text in texts) > 0.8 * len(texts)


def test_stdlib_holds_nothing_installed_or_tested() -> None:
    parts = {part for file in source_files() for part in file.parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    assert source_files() == sorted(source_files(), key=lambda file: file.as_posix())


def test_a_python_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    for corpus in (StdlibCorpus(val_fraction=0.1), PydocsCorpus(val_fraction=0.1)):
        with pytest.raises(UserError, match="without the sources"):
            corpus.check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the value of the\nnamed attribute.", ["Return the value of the named attribute."]),
        ("Use :func:`open` with ``mode`` and *care* in “all” cases — yes.",
         ['Use open with mode and care in "all" cases - yes.']),
        ("See :ref:`the chapter on names <naming>` for more.", ["See the chapter on names for more."]),
        ("* The first of several points made here.\n* The second of several points made here.",
         ["The first of several points made here.", "The second of several points made here."]),
        (">>> x = 1\n>>> print(x)", []),
        ("stmt ::= expr ('+' expr)* of some grammar.", []),
        ("open(file, mode='r', buffering=-1) -> file", []),
        ("Too short.", []),
        ("Ünïcode words stay out of this corpus entirely.", []),
    ],
)  # fmt: skip
def test_prose(text: str, expected: list[str]) -> None:
    assert list(prose(text)) == expected
