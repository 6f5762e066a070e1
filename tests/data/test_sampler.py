"""Sampler: a permutation per epoch, as a pure function of seed and sample number."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import make_split
from tinyllm.data.sampler import Sampler
from tinyllm.data.shuffle import permuted
from tinyllm.errors import UserError

MANY = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splits")


@MANY
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation(n: int, key: int) -> None:
    assert sorted(permuted(np.arange(n), n, key)) == list(range(n))


def test_permutations_differ_and_are_well_mixed() -> None:
    n = 1000
    orders = np.stack([permuted(np.arange(n), n, key) for key in range(200)])
    assert len({tuple(order) for order in orders}) == 200
    # Every position sees small and large values alike: the mean of 200 uniform draws has sd n/√12/√200 =
    # 20.4.
    assert np.abs(orders.mean(axis=0) - (n - 1) / 2).max() < 5 * 20.4
    # Neighbours in the order are not neighbours in the data.
    assert (np.abs(np.diff(orders, axis=1)) == 1).mean() < 0.01


@MANY
@given(length=st.integers(3, 500), seq_len=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_every_window_once_per_epoch(folder: Path, length: int, seq_len: int, seed: int) -> None:
    if length < seq_len + 1:
        return
    split = make_split(folder, np.arange(length))
    sampler = Sampler(split, seq_len=seq_len, seed=seed)
    per_epoch = sampler.windows_per_epoch
    for epoch in range(3):
        starts = np.sort(sampler.starts(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch)))
        assert (np.diff(starts) == seq_len).all()  # side by side: no token is predicted twice in an epoch
        assert starts[0] >= 0
        assert starts[-1] + seq_len + 1 <= length
        assert starts[0] < seq_len
    # At most two windows' worth of tokens is not predicted in an epoch.
    assert length - 1 - per_epoch * seq_len < 2 * seq_len


@MANY
@given(rows=st.integers(1, 20), length=st.integers(2, 50), seq_len=st.integers(1, 49), seed=st.integers(0, 2**31))
def test_windows_stay_within_rows(folder: Path, rows: int, length: int, seq_len: int, seed: int) -> None:
    if length < seq_len + 1:
        return
    split = make_split(folder, np.repeat(np.arange(rows), length), row_length=length)
    sampler = Sampler(split, seq_len=seq_len, seed=seed)
    windows = sampler.windows(np.arange(sampler.windows_per_epoch))
    assert (windows == windows[:, :1]).all()
    assert np.bincount(windows[:, 0]).tolist() == [(length - 1) // seq_len] * rows


def test_a_row_as_long_as_a_window_is_the_window(folder: Path) -> None:
    ids = np.arange(12 * 9)
    sampler = Sampler(make_split(folder, ids, row_length=9), seq_len=8, seed=3)
    windows = sampler.windows(np.arange(12))
    assert np.array_equal(windows[windows[:, 0].argsort()], ids.reshape(12, 9))


def test_offsets_change_from_epoch_to_epoch(folder: Path) -> None:
    sampler = Sampler(make_split(folder, np.arange(1000)), seq_len=10, seed=1)
    n = sampler.windows_per_epoch
    offsets = {int(sampler.starts(np.arange(e * n, (e + 1) * n)).min()) for e in range(100)}
    assert offsets == set(range(10))


@MANY
@given(samples=st.lists(st.integers(0, 10_000), min_size=1, max_size=20), seed=st.integers(0, 2**31))
def test_a_sample_does_not_depend_on_the_others_in_its_batch(folder: Path, samples: list[int], seed: int) -> None:
    split = make_split(folder, np.arange(777))
    together = Sampler(split, seq_len=16, seed=seed).windows(np.array(samples))
    alone = [Sampler(split, seq_len=16, seed=seed).windows(np.array([i]))[0] for i in samples]
    assert np.array_equal(together, np.stack(alone))


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1200, 20_000), batches=st.lists(st.tuples(st.integers(0, 2900), st.integers(1, 70)), min_size=1)
)
def test_a_sampler_that_is_asked_again_answers_as_a_new_one(
    folder: Path, tokens: int, batches: list[tuple[int, int]]
) -> None:
    """It keeps the order of the samples around those of the last batch."""
    split = make_split(folder, np.arange(tokens))
    sampler = Sampler(split, seq_len=8, seed=3)
    all_at_once = Sampler(split, seq_len=8, seed=3).starts(np.arange(3000))
    for first, size in batches:
        assert np.array_equal(sampler.starts(np.arange(first, first + size)), all_at_once[first : first + size])
    assert sampler.starts(np.arange(0)).shape == (0,)


def test_seeds_give_other_orders(folder: Path) -> None:
    split = make_split(folder, np.arange(5000))
    orders = {tuple(Sampler(split, seq_len=8, seed=seed).starts(np.arange(50))) for seed in range(20)}
    assert len(orders) == 20


def test_windows_are_the_ids_of_the_split(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 70_000, 400)
    sampler = Sampler(make_split(folder, ids), seq_len=7, seed=0)
    starts = sampler.starts(np.arange(100))
    windows = sampler.windows(np.arange(100))
    assert windows.dtype == np.int64
    for start, window in zip(starts, windows, strict=True):
        assert window.tolist() == ids[start : start + 8].tolist()


@pytest.mark.parametrize("row_length", [None, 20])
def test_split_shorter_than_a_window(folder: Path, row_length: int | None) -> None:
    split = make_split(folder, np.arange(20), row_length=row_length)
    assert Sampler(split, seq_len=19, seed=0).windows_per_epoch == 1
    with pytest.raises(UserError, match=r"has 20 tokens.* needs 21") as caught:
        Sampler(split, seq_len=20, seed=0)
    assert caught.value.key == "trainer.seq_len"


def test_global_generators_are_left_alone(folder: Path) -> None:
    import random

    import torch

    before = (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
    Sampler(make_split(folder, np.arange(500)), seq_len=8, seed=0).windows(np.arange(100))
    assert before == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
