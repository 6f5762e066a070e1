"""Training data that are read shard by shard, while they are being prepared or later: the same order."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import make_split, text_corpus
from tests.support.early_start import SHARD, use_small_shards
from tinyllm.data import journal
from tinyllm.data.arrivals import Arrivals
from tinyllm.data.early_start import growing_data
from tinyllm.data.preparation_process import PreparationProcess
from tinyllm.data.prepare import prepare
from tinyllm.data.run_data import make_source
from tinyllm.data.shards import ShardedSampler
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer

SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen.\n"


@settings(max_examples=20, deadline=None)
@given(length=st.integers(3, 700), shard=st.integers(3, 200), seq_len=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_each_window_once_per_epoch_shard_by_shard(
    tmp_path_factory: pytest.TempPathFactory, length: int, shard: int, seq_len: int, seed: int
) -> None:
    if min(length, shard) <= seq_len:
        return
    split = make_split(tmp_path_factory.getbasetemp(), np.arange(length))
    split.shard_tokens = shard
    sampler = ShardedSampler(split, seq_len=seq_len, seed=seed)
    per_epoch = sampler.windows_per_epoch
    for epoch in range(3):
        starts = sampler.starts(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch))
        shards = starts // shard
        assert (np.diff(shards) >= 0).all()  # one after the other
        assert ((starts + seq_len) // shard == shards).all() and (starts + seq_len < length).all()
        for number in range(length // shard + 1):
            inside, tokens = np.sort(starts[shards == number]), min(shard, length - number * shard)
            assert (np.diff(inside) == seq_len).all()
            assert tokens - 1 - len(inside) * seq_len < 2 * seq_len
    everything = sampler.starts(np.arange(3 * per_epoch))
    assert sampler.starts(np.arange(3 * per_epoch)[::-1]).tolist() == everything[::-1].tolist()
    assert [int(sampler.starts(np.array([i]))[0]) for i in range(3 * per_epoch)] == everything.tolist()


def test_the_order_is_new_in_every_shard_epoch_and_seed(tmp_path: Path) -> None:
    split = make_split(tmp_path, np.arange(4000))
    split.shard_tokens = 1000
    one, other = (ShardedSampler(split, seq_len=8, seed=seed) for seed in (0, 1))
    starts = one.starts(np.arange(2 * one.windows_per_epoch)) % 1000
    orders = [tuple(part.tolist()) for part in np.split(starts, 8)]
    assert len(set(orders)) == 8
    assert all((np.abs(np.diff(order)) == 8).mean() < 0.1 for order in orders)
    assert other.starts(np.arange(100)).tolist() != one.starts(np.arange(100)).tolist()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i}: {SENTENCE}" for i in range(120)))
    return file


def test_the_order_is_that_of_the_finished_data_however_much_has_arrived(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as it was after each shard; it is then finished under the eyes of the reader."""
    use_small_shards(monkeypatch)
    corpus = text_corpus(text, start_early=True, shard_tokens=SHARD)
    caches: list[Path] = []

    def snapshot(point: str) -> None:
        caches.append(shutil.copytree(tmp_path / "whole", tmp_path / f"after-{len(caches)}"))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "fault", snapshot)
        whole = prepare(corpus, ByteTrainer(), cache_dir=tmp_path / "whole")
    expected = make_source(whole.train, seq_len=16, seed=5)
    n_samples = 2 * expected.windows_per_epoch + 7
    batch = expected.batch(np.arange(n_samples))
    key, ready = whole.path.name, []
    monkeypatch.setattr(PreparationProcess, "ensure", lambda self, finished: None)
    for cache in caches[-8:-1:2]:
        root = cache / "tokens"
        process, arrivals = PreparationProcess([], {}, root=root, key=key), Arrivals(root, key)
        assert arrivals.poll().splits["val"].is_complete
        data = growing_data(corpus, arrivals, process, root=root, key=key, rules=2)
        assert data.fingerprints() == whole.fingerprints() and data.notes[:-1] == whole.notes
        assert data.val.read(0, data.val.n_tokens).tolist() == whole.val.read(0, whole.val.n_tokens).tolist()
        source = make_source(data.train, seq_len=16, seed=5)
        assert isinstance(source, ShardedSampler) and not source.has_all_data
        there = [sample for sample in range(n_samples) if source.is_ready(sample)]
        ready.append(len(there))
        assert there == list(range(len(there))) and len(there) == data.train.n_tokens // SHARD * (SHARD // 16 - 1)
        assert source.batch(np.array(there)).inputs.equal(batch.inputs[: len(there)])
        again = prepare(corpus, ByteTrainer(), cache_dir=cache)
        assert again.fingerprints() == whole.fingerprints()
        assert source.is_ready(n_samples - 1) and source.has_all_data
        for reader in (source, pickle.loads(pickle.dumps(source))):
            assert reader.batch(np.arange(n_samples)).inputs.equal(batch.inputs)
            assert reader.batch(np.arange(n_samples)).targets.equal(batch.targets)
    assert ready == sorted(set(ready)) and ready[0] > 0


def test_an_order_without_shards_is_another_one_on_the_same_cache(text: Path, tmp_path: Path) -> None:
    early = prepare(text_corpus(text, start_early=True), ByteTrainer(), cache_dir=tmp_path / "cache")
    other = prepare(text_corpus(text), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert early.path == other.path
    assert early.fingerprints()["train"] != other.fingerprints()["train"]
    assert early.fingerprints()["val"] == other.fingerprints()["val"]


def test_a_shard_shorter_than_a_window_is_refused(text: Path, tmp_path: Path) -> None:
    data = prepare(text_corpus(text, start_early=True, shard_tokens=16), ByteTrainer(), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"dataset.shard_tokens=16\): at least 17"):
        make_source(data.train, seq_len=16, seed=0)
