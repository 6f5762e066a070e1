"""Directories in the layout of the Hugging Face hub, with the configurations, splits and columns of the real sets."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.training_runs import WORDS

Splits = Mapping[str, Sequence[Mapping[str, object]]]


def sentences(rng: random.Random, count: int) -> str:
    return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(count))


def write_split(folder: Path, split: str, rows: Sequence[Mapping[str, object]], *, shards: int) -> None:
    """The Parquet shards of a split, named as the hub names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = list(rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards])
        name = f"{split}-{shard:05}-of-{shards:05}.parquet"
        table = pa.Table.from_pylist(part, schema=None if part else pa.schema([("text", pa.string())]))
        pq.write_table(table, folder / name, row_group_size=256)


def write_readme(root: Path, configs: Mapping[str, Sequence[str]], *, folder: str | None = None) -> None:
    """The page of the data set, whose head lists configurations and files."""
    lines = ["---", "license: cc-by-sa-4.0", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder or config}/{split}-*"]
    (root / "README.md").write_text("\n".join([*lines, "---", "# Data set", ""]))


def tinystories(root: Path, *, stories: int = 2000) -> Path:
    """As ``roneneldan/TinyStories``: two splits of stories in ``data/``."""
    rng = random.Random(1)
    for split, count, shards in (("train", stories, 4), ("validation", stories // 20, 1)):
        rows = [{"text": f"Once upon a time {i}. {sentences(rng, 5)}"} for i in range(count)]
        write_split(root / "data", split, rows, shards=shards)
    write_readme(root, {"default": ["train", "validation"]}, folder="data")
    return root


def wikitext_rows(rng: random.Random, articles: int) -> list[dict[str, object]]:
    """The lines of articles, with the marks of WikiText's tokenization."""
    lines = []
    for number in range(articles):
        lines += ["", f" = Article {number} @-@ {rng.randrange(9**9)} = \n", ""]
        for section in range(2):
            lines += [f" = = Section {section} = = \n", ""]
            text = sentences(rng, 4).replace(".", " .").replace(" of ", " @-@ ").replace(" as ", " , ")
            lines += [f' {text} He said " {rng.choice(WORDS)} " ( 1 @,@ 000 ) . \n', ""]
    return [{"text": line} for line in lines]


def wikitext(root: Path, *, articles: int = 60) -> Path:
    """As ``Salesforce/wikitext``: four configurations, of which the raw ones have text; rows are lines."""
    rng = random.Random(2)
    configs = ("wikitext-103-raw-v1", "wikitext-103-v1", "wikitext-2-raw-v1", "wikitext-2-v1")
    splits = ("train", "validation", "test")
    for config in configs:
        for split in splits:
            few = articles // 10 if split != "train" else articles
            rows = wikitext_rows(rng, few)
            write_split(root / config, split, rows, shards=2 if split == "train" and "103" in config else 1)
    write_readme(root, dict.fromkeys(configs, splits))
    return root


def fineweb(root: Path, *, pages: int = 3000) -> Path:
    """As ``HuggingFaceFW/fineweb-edu``: a sample with one split and the columns of the real set."""
    rng = random.Random(3)
    rows = [
        {
            "text": f"Page {i}.\n{sentences(rng, 6)}",
            "id": f"<urn:uuid:{i}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"https://example.org/{i}",
            "file_path": "s3://commoncrawl/…",
            "language": "en",
            "language_score": 0.9,
            "token_count": 50,
            "score": 3.1,
            "int_score": 3,
        }
        for i in range(pages)
    ]
    folder = root / "sample" / "10BT"
    folder.mkdir(parents=True)
    for shard in range(3):
        part = rows[pages * shard // 3 : pages * (shard + 1) // 3]
        pq.write_table(pa.Table.from_pylist(part), folder / f"{shard:03}_00000.parquet", row_group_size=200)
    head = ["---", "configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: data/*/*"]
    head += ["- config_name: sample-10BT", "  data_files:", "  - split: train", "    path: sample/10BT/*", "---", ""]
    (root / "data" / "CC-MAIN-2024-10").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:5]), root / "data" / "CC-MAIN-2024-10" / "train-00000-of-00001.parquet")
    (root / "README.md").write_text("\n".join(head))
    return root
