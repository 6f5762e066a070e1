"""Small data sets and splits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinyllm.data.bin import BinCorpus
from tinyllm.data.prepare import prepare
from tinyllm.data.text import TextCorpus
from tinyllm.data.token_data import Split, TokenData
from tinyllm.tokenizers import TokenizerTrainer
from tinyllm.tokenizers.byte import ByteTrainer


def text_corpus(path: Path | str, **changes) -> TextCorpus:
    """A text corpus with the defaults of conf/dataset/text.yaml."""
    return TextCorpus(**{"path": str(path), "val_path": None, "val_fraction": 0.1, "errors": "strict"} | changes)


def bin_corpus(path: Path | str, **changes) -> BinCorpus:
    """A corpus of raw ids with the defaults of conf/dataset/bin.yaml."""
    return BinCorpus(**{"path": str(path), "val_path": None, "val_fraction": 0.1, "eot_id": None} | changes)


def make_split(folder: Path, ids: np.ndarray, row_length: int | None = None, name: str = "train") -> Split:
    """A split of ``ids`` without a token cache."""
    path = folder / f"{name}.bin"
    ids.astype(np.uint32).tofile(path)
    lengths = np.ones(int(ids.max()) + 1, dtype=np.int64) if row_length is None else None
    return Split(name, path, "uint32", len(ids), row_length, "f", lengths, np.zeros((2, 0), dtype=np.int64))


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., TokenData]:
    """Write texts to files, one document each, and prepare them."""

    def prepare_texts(*texts: str, trainer: TokenizerTrainer | None = None, **changes) -> TokenData:
        folder = tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        for i, text in enumerate(texts):
            (folder / f"{i:04}.txt").write_bytes(text.encode())
        path = folder if len(texts) > 1 else folder / "0000.txt"
        return prepare(text_corpus(path, **changes), trainer or ByteTrainer(), cache_dir=tmp_path / "cache")

    return prepare_texts
