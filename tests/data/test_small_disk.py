"""A disk that is too small for a token cache: refused before anything heavy, with what is needed and what is free."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.conftest import text_corpus
from tinyllm.data.prepare import prepare
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.utils import disk_space

MEGABYTE = 2**20
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen; déjà vu.\n"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def text_of(tmp_path: Path, megabytes: float) -> Path:
    file = tmp_path / f"{megabytes}.txt"
    file.write_text(TEXT * int(megabytes * MEGABYTE / len(TEXT.encode())))
    return file


def test_a_real_disk(small: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(UserError) as refused:
        prepare(
            text_corpus(text_of(tmp_path, 2)),
            CharTrainer(),
            cache_dir=small,
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert str(refused.value).startswith(f"the disk is too small for the token cache ({small / 'tokens'}): about 3.")
    assert " MB needed, 1.0" in str(refused.value) and "TINYLLM_CACHE" in str(refused.value)
    assert set(stages) == {"reading"}  # nothing was learned
    assert [file.suffix for file in (small / "tokens").iterdir()] == [".lock"]
    fits = prepare(text_corpus(text_of(tmp_path, 0.3)), CharTrainer(), cache_dir=small)
    assert fits.train.n_tokens > 0.25 * MEGABYTE


@pytest.mark.parametrize(
    ("trainer", "needed"),
    [
        (ByteTrainer(), 2 * 0.9),
        (CharTrainer(), 2 * 0.9 * len(TEXT) / len(TEXT.encode())),
        (BPETrainer(vocab_size=300, min_frequency=2, special_tokens=[]), 2 * 0.9 / 4),
    ],
    ids=["byte", "char", "bpe"],
)
def test_what_is_needed(trainer, needed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes per token of the training split; a tokenizer that is yet to be trained has tokens of four bytes."""
    text = text_of(tmp_path, 0.25)
    for share, fits in ((0.99, False), (1.01, True)):
        free = int(share * needed * 0.25 * MEGABYTE)
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        try:
            prepare(text_corpus(text), trainer, cache_dir=tmp_path / "cache")
        except UserError as error:
            assert not fits and "too small" in str(error)
        else:
            assert fits
