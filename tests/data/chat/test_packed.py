"""Conversations packed into windows: whole, each once per epoch, as a function of seed and number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.data.chat.packed import PackedConversations
from tinyllm.data.chat.rows import ConversationSplit
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE

VOCABULARY = 50


def split_of(lengths: list[int], *, drops_long: bool = False) -> ConversationSplit:
    """Conversations of random tokens and targets; the last token of each is a target, and names it if it can."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    generator = np.random.default_rng(sum(lengths))
    ids = generator.integers(VOCABULARY, size=starts[-1]).astype(np.uint32)
    is_target = generator.random(starts[-1]) < 0.4
    is_target[starts[1:] - 1] = True
    return ConversationSplit("train", ids, is_target, starts, drops_long, np.ones(VOCABULARY, dtype=int), "best_fit")


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 14), min_size=1, max_size=30), seed=st.integers(0, 2**31))
def test_an_epoch_has_every_conversation_once_and_whole(lengths: list[int], seed: int) -> None:
    split = split_of(lengths)
    packed = PackedConversations(split, seq_len=13, seed=seed)
    count = packed.windows_per_epoch
    for epoch in range(2):
        batch = packed.batch(np.arange(epoch * count, (epoch + 1) * count))
        assert batch.doc_ids is not None and batch.counted == split.targets.sum()
        found = []
        for inputs, targets, doc_ids in zip(batch.inputs, batch.targets, batch.doc_ids, strict=True):
            for number in doc_ids.unique_consecutive():
                chosen = doc_ids == number
                if (targets[chosen] != IGNORE).any():
                    found.append((inputs[chosen].tolist(), targets[chosen].tolist()))
                else:
                    assert number == doc_ids[-1] and not inputs[chosen].any(), "padding, at the end"
        alone = [split.row(number) for number in range(len(lengths))]
        assert sorted(found) == sorted((ids.tolist(), targets.tolist()) for ids, targets in alone)
        assert all((targets[:-1] == ids[1:])[targets[:-1] != IGNORE].all() for ids, targets in alone)
    size = sum(length - 1 for length in lengths)
    assert packed.padding == pytest.approx(1 - size / (count * 13))


def test_windows_are_a_pure_function_of_seed_and_number() -> None:
    split = split_of([3, 9, 4, 4, 7, 2, 8, 8, 2, 6, 5])
    samples = np.array([41, 0, 3, 17])
    together = PackedConversations(split, seq_len=9, seed=5).batch(samples)
    alone = [PackedConversations(split, seq_len=9, seed=5).batch(samples[i : i + 1]).inputs[0] for i in range(4)]
    assert [row.tolist() for row in together.inputs] == [row.tolist() for row in alone]
    packings = [PackedConversations(split, seq_len=9, seed=seed) for seed in range(10)]
    orders = [np.concatenate(packed.conversations(np.arange(20))).tolist() for packed in packings]
    assert len({tuple(order) for order in orders}) == 10


def test_long_conversations_are_refused_or_left_out() -> None:
    with pytest.raises(UserError, match="a conversation of 20 tokens"):
        PackedConversations(split_of([3, 20, 9]), seq_len=9, seed=0)
    packed = PackedConversations(split_of([3, 20, 10], drops_long=True), seq_len=9, seed=0)
    assert packed.n_left_out == 1 and packed.windows_per_epoch == 2
    assert packed.note == (
        "dataset.packing=best_fit: 2 conversations in 2 windows per epoch, 38.89% padding; none is cut"
    )
