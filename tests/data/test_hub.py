"""Data sets of the hub as directories in its layout: documents, splits, choices, and errors."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import hub_sets
from tinyllm.config.compose import compose
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.hub.corpus import HubCorpus, WikitextCorpus
from tinyllm.data.hub.layout import on_disk
from tinyllm.data.hub.rows import Spool
from tinyllm.data.prepare import prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer

DEFAULTS: dict[str, Any] = {
    **{"name": None, "path": None, "config": None, "revision": None, "field": "text", "split": "train"},
    **{"val_split": None, "test_split": None, "streaming": False, "val_fraction": 0.1},
}


def hub(path: Path, **changes: Any) -> HubCorpus:
    return HubCorpus(**DEFAULTS | {"path": str(path)} | changes)


def wiki(path: Path, **changes: Any) -> WikitextCorpus:
    splits = {"config": "wikitext-2-raw-v1", "val_split": "validation", "test_split": "test", "clean": True}
    return WikitextCorpus(**DEFAULTS | splits | {"path": str(path)} | changes)


def texts(corpus: HubCorpus, folder: Path, side: str = "documents") -> list[str]:
    corpus.check()
    documents = getattr(corpus.open(ContentHashes(folder / "sources")), side)
    first, again = (["".join(document.chunks()) for document in documents()] for _ in range(2))
    assert first == again
    return first


def column(root: Path, pattern: str, name: str = "text") -> list[str]:
    return [text for file in sorted(root.glob(pattern)) for text in pq.read_table(file)[name].to_pylist()]


def test_rows_are_documents_and_the_named_split_is_validation(tmp_path: Path) -> None:
    root = hub_sets.tinystories(tmp_path / "TinyStories", stories=300)
    corpus = hub(root, val_split="validation")
    assert texts(corpus, tmp_path) == column(root, "data/train-*")
    assert texts(corpus, tmp_path, "validation") == column(root, "data/validation-*")


def test_wikitext_is_articles_with_and_without_its_marks(tmp_path: Path) -> None:
    root = hub_sets.wikitext(tmp_path / "wikitext", articles=20)
    raw = texts(wiki(root, clean=False), tmp_path)
    assert len(raw) == 20
    lines = column(root, "wikitext-2-raw-v1/train-*")
    assert "".join(raw).split() == " ".join(lines).split()
    assert all(article.lstrip("\n").startswith(f" = Article {i} @-@ ") for i, article in enumerate(raw))
    clean = texts(wiki(root), tmp_path)
    assert clean[3].lstrip("\n").startswith("Article 3-")
    assert not any(mark in "".join(clean) for mark in ("@-@", "@,@", " ,", " .", "( ", " )", "= "))


def test_a_copy_of_one_configuration_without_the_page(tmp_path: Path) -> None:
    root = hub_sets.wikitext(tmp_path / "wikitext", articles=20)
    (root / "README.md").unlink()
    assert len(texts(wiki(root), tmp_path)) == 20
    assert texts(wiki(root / "wikitext-2-raw-v1", config=None), tmp_path) == texts(wiki(root), tmp_path)


def test_files_are_the_training_split(tmp_path: Path) -> None:
    root = hub_sets.wikitext(tmp_path / "wikitext", articles=20)
    source = wiki(root / "wikitext-2-raw-v1" / "train-*").open(ContentHashes(tmp_path / "sources"))
    assert source.validation is None and source.notes == [
        "The files have no split validation: validation is split off."
    ]
    assert len(list(source.documents())) == 20
    lines = "\n".join(line.rstrip("\n") for line in column(root, "wikitext-2-raw-v1/train-*"))
    (tmp_path / "wiki.train.raw").write_text(lines)
    text = wiki(tmp_path / "wiki.train.raw")
    assert [article.split() for article in texts(text, tmp_path)] == [
        document.split() for document in texts(wiki(root), tmp_path)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json.gz"])
def test_other_formats(tmp_path: Path, kind: str) -> None:
    table = pa.table({"story": [f"text {i}, with a comma" for i in range(50)], "n": list(range(50))}).to_pandas()
    file = tmp_path / "set" / f"train.{kind}"
    file.parent.mkdir()
    if kind == "csv":
        table.to_csv(file, index=False)
    else:
        table.to_json(file, orient="records", lines=True)
    assert texts(hub(tmp_path / "set", field="story"), tmp_path) == table["story"].tolist()
    with pytest.raises(UserError, match=r"no such column .*there are"):
        hub(tmp_path / "set").check()


def test_everything_that_changes_the_documents_is_in_the_fingerprint(tmp_path: Path) -> None:
    root = hub_sets.tinystories(tmp_path / "TinyStories", stories=40)

    def fingerprint(**changes: Any) -> str:
        return hub(root, **changes).open(ContentHashes(tmp_path / "sources")).fingerprint

    variants: list[dict[str, Any]] = [
        {}, {"val_split": "validation"}, {"split": "validation"}, {"val_fraction": 0.2}, {"max_documents": 9},
        {"max_tokens": 9}, {"dedup": "exact"}, {"normalize": "nfc"}, {"clean": "wikitext"},
    ]  # fmt: skip
    assert len({fingerprint(**variant) for variant in variants}) == len(variants)
    assert fingerprint() == fingerprint()
    before = fingerprint()
    hub_sets.write_split(root / "data", "train", [{"text": "another story"}], shards=1)
    assert fingerprint() != before


def test_the_sample_of_fineweb(tmp_path: Path) -> None:
    """The configuration decides which of the files are read; only the column of the text is."""
    root = hub_sets.fineweb(tmp_path / "fineweb-edu", pages=600)
    corpus = hub(root, config="sample-10BT", max_tokens=10_000)
    data = prepare(corpus, ByteTrainer(), cache_dir=tmp_path / "cache")
    pages = column(root, "sample/10BT/*.parquet")
    taken = texts(corpus, tmp_path)
    assert taken[:-1] == pages[: len(taken) - 1] and pages[len(taken) - 1].startswith(taken[-1])
    assert sum(map(len, taken)) == 10_000
    assert data.train.n_tokens + data.val.n_tokens == 10_000 + len(taken)


def test_the_test_split_takes_the_place_of_validation(tmp_path: Path) -> None:
    root = hub_sets.wikitext(tmp_path / "wikitext", articles=20)
    corpus = wiki(root, max_documents=3)
    assert texts(corpus.for_test(), tmp_path, "validation") == texts(wiki(root, split="test", val_split=None), tmp_path)
    with pytest.raises(UserError, match=r"no test split .*dataset.test_split=null"):
        hub(root, config="wikitext-2-raw-v1").for_test()


def test_words_are_those_of_the_uncleaned_text(tmp_path: Path) -> None:
    root = hub_sets.wikitext(tmp_path / "wikitext", articles=20)
    hashes = ContentHashes(tmp_path / "sources")
    for split, name in (("val", "validation"), ("test", "test"), ("train", "train")):
        words = " ".join(column(root, f"wikitext-2-raw-v1/{name}-*")).split()
        assert wiki(root).count_words(split, hashes) == len(words)
    assert wiki(root, max_documents=3).count_words("train", hashes) is None
    assert hub(root, config="wikitext-2-raw-v1").count_words("val", hashes) is None


def test_damage_and_what_is_no_data_set(tmp_path: Path) -> None:
    root = hub_sets.tinystories(tmp_path / "TinyStories", stories=900)
    shard = sorted(root.glob("data/train-*"))[2]
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"the Parquet file is damaged .*{shard.name}"):
        prepare(hub(root), ByteTrainer(), cache_dir=tmp_path / "cache")
    (tmp_path / "nothing").mkdir()
    for place, match in (
        (tmp_path / "nothing", "no data set that the library datasets can read"),
        (tmp_path / "nowhere", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=match):
            hub(place).check()
    with pytest.raises(UserError, match=r"several configurations .*one of wikitext-103-raw-v1, "):
        wiki(hub_sets.wikitext(tmp_path / "wikitext", articles=10), config=None).check()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets cannot be imported .*pip install 'tinyllm\[data\]'"):
        hub(tmp_path)


def test_the_option_files_name_the_real_sets() -> None:
    chosen = {
        option: compose(f"dataset={option}", *more).dataset
        for option, more in (("tinystories", ()), ("wikitext", ()), ("fineweb", ("dataset.max_tokens=null",)))
    }
    names = {option: (dataset.name, dataset.config) for option, dataset in chosen.items()}
    assert names == {
        "tinystories": ("roneneldan/TinyStories", None),
        "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
        "fineweb": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    }


def test_copies_are_read_in_the_order_of_their_shards(tmp_path: Path) -> None:
    """And a character tokenizer learns from the training split alone."""
    root = hub_sets.tinystories(tmp_path / "TinyStories", stories=100)
    data = prepare(hub(root, val_split="validation"), CharTrainer(), cache_dir=tmp_path / "cache")
    assert data.tokenizer.decode(data.train.ids[:60]) == "".join(column(root, "data/train-*"))[:60]
    layout = on_disk(str(root), None)
    assert [Path(file).name[:11] for file in layout.splits["train"]] == [f"train-{i:05}" for i in range(4)]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to a different user")
@pytest.mark.parametrize("planted", ["part", "folder"])
def test_streamed_rows_that_a_different_user_left_are_read_again(planted: str, tmp_path: Path) -> None:
    starts: list[int] = []

    def fetch(start: int) -> Iterator[bytes]:
        starts.append(start)
        yield from (b"one", b"two", b"three")[start:]

    folder = tmp_path / "streams" / "0a"
    spool = Spool(folder, fetch, name="user/set")
    assert [*spool()] == [*spool()] == [b"one", b"two", b"three"]
    assert starts == [0, 3]
    [part] = folder.iterdir()
    os.chown({"part": part, "folder": folder}[planted], 12345, 12345)
    assert [*spool()] == [b"one", b"two", b"three"]
    assert starts == [0, 3, 0]
