"""Best-fit decreasing against packing one item after the other, and windows of whole documents."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import make_split
from tinyllm.data import packing
from tinyllm.data.packed_windows import PackedWindows, cut
from tinyllm.data.packing import best_fit_decreasing, pack
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE

MANY = settings(max_examples=60, deadline=None)
EOT = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splits")


def one_by_one(lengths: list[int], size: int) -> list[int]:
    """The room that is left in each window after best-fit decreasing, item by item."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        rooms.append(size)
        if fitting:
            rooms.pop()
            rooms.remove(min(fitting))
            rooms.append(min(fitting))
        rooms[-1] -= length
    return sorted(rooms)


@MANY
@given(st.integers(1, 20).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), min_size=1))))
def test_fills_windows_as_packing_one_by_one_does(case: tuple[int, list[int]]) -> None:
    size, lengths = case
    filled = np.bincount(best_fit_decreasing(np.array(lengths), size), weights=lengths)
    assert sorted(size - filled) == one_by_one(lengths, size)


@MANY
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), buffer=st.integers(1, 50))
def test_every_item_is_in_one_window(lengths: list[int], buffer: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BUFFER", buffer)
        packed = pack(np.array(lengths), 9)
    windows = [packed.of(window).tolist() for window in range(packed.n_windows)]
    assert sorted(item for window in windows for item in window) == list(range(len(lengths)))
    assert all(window == sorted(window) and sum(lengths[item] for item in window) <= 9 for window in windows)


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths from 3 to 10 do not fit windows of 9"):
        pack(np.array([3, 10]), 9)


def test_documents_are_cut_every_window() -> None:
    assert cut(np.array([0, 3, 13, 14]), 4).tolist() == [0, 3, 7, 11, 13, 14]


def split_of(folder: Path, lengths: list[int], *, ends: bool) -> Split:
    """A split of documents of these lengths, of distinct ids, each but perhaps the last with an end-of-text id."""
    ids = np.arange(1, sum(lengths) + 1)
    ids[np.cumsum(lengths) - 1] = EOT
    split = make_split(folder, ids if ends else ids[:-1])
    split.eot_id = EOT
    return split


@MANY
@given(
    lengths=st.lists(st.integers(1, 30), min_size=3, max_size=12),
    ends=st.booleans(),
    seq_len=st.integers(2, 12),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_has_every_token_as_a_target_once_and_whole_documents(
    folder: Path, lengths: list[int], ends: bool, seq_len: int, seed: int
) -> None:
    split = split_of(folder, [*lengths, 5], ends=ends)
    lengths = [*lengths, 4 + ends]
    windows = PackedWindows(split, seq_len=seq_len, seed=seed)
    first, second = (
        windows.batch(np.arange(windows.windows_per_epoch) + e * windows.windows_per_epoch) for e in (0, 1)
    )
    assert sorted(first.targets[first.targets != IGNORE].tolist()) == sorted(split.ids.tolist())
    assert sorted(map(tuple, first.targets.tolist())) == sorted(map(tuple, second.targets.tolist()))
    pieces = []
    for inputs, targets, doc_ids in zip(first.inputs, first.targets, first.doc_ids, strict=True):  # type: ignore[arg-type]
        for number in doc_ids.unique_consecutive():
            chosen = doc_ids == number
            predicted = targets[chosen].tolist()
            if predicted[0] == IGNORE:
                assert set(predicted) == {IGNORE} and number == doc_ids[-1]
                continue
            assert inputs[chosen][1:].tolist() == predicted[:-1]
            pieces.append((int(inputs[chosen][0]), predicted))
    text, start, expected = [EOT, *split.ids.tolist()], 0, []
    for length in lengths:
        for at in range(start, start + length, seq_len):
            expected.append((text[at], text[at + 1 : min(at + seq_len, start + length) + 1]))
        start += length
    assert sorted(pieces) == sorted(expected)
    share = (first.targets == IGNORE).float().mean().item()
    assert windows.padding == pytest.approx(share, abs=1e-6)
    assert windows.n_cut == sum(length > seq_len for length in lengths)


def test_windows_are_a_pure_function_of_seed_and_number(folder: Path) -> None:
    split = split_of(folder, [3, 9, 4, 4, 7, 2, 8, 8, 1, 6, 5], ends=True)
    samples = np.array([41, 0, 3, 17])
    together = PackedWindows(split, seq_len=9, seed=5).batch(samples)
    alone = [PackedWindows(split, seq_len=9, seed=5).batch(samples[i : i + 1]).inputs[0] for i in range(4)]
    assert [row.tolist() for row in together.inputs] == [row.tolist() for row in alone]
    orders = {tuple(PackedWindows(split, seq_len=9, seed=seed).windows(np.arange(20))) for seed in range(10)}
    assert len(orders) == 10


def test_data_without_documents_are_refused(folder: Path) -> None:
    rows = make_split(folder, np.arange(40), row_length=10)
    no_eot = make_split(folder, np.arange(40))
    one = split_of(folder, [40], ends=True)
    for split, message in ((rows, "rows"), (no_eot, "no end-of-text token"), (one, "a single document")):
        with pytest.raises(UserError, match=message) as error:
            PackedWindows(split, seq_len=8, seed=0)
        assert (error.value.key, error.value.value) == ("dataset.packing", "best_fit")
