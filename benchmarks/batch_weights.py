"""How much a target weighs in training, by the length of its answer, and how much of the batches is padding.

    python benchmarks/batch_weights.py experiment=tools dataset.tool_share=0.82

A step's loss is the mean over its targets, so a target weighs 1 / (targets of its step). The table gives its weight
over an epoch relative to the average target, for five groups of conversations from the shortest answers to the longest:
1 for all if batches are alike. Takes the settings of a run whose data set is made of conversations.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tinyllm import compose
from tinyllm.data.batch import row_length
from tinyllm.data.chat.packed import PackedConversations
from tinyllm.data.chat.rows import ConversationSource, ConversationSplit
from tinyllm.programs.builders import open_corpus, open_data
from tinyllm.utils.tables import Column, Table

GROUPS = 5


def of_rows(split: ConversationSplit, seq_len: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The conversations of each batch of rows in an epoch, and its positions."""
    source = ConversationSource(split, seq_len=seq_len, seed=1)
    for start in range(0, source.windows_per_epoch - batch_size + 1, batch_size):
        rows = source.rows(np.arange(start, start + batch_size))
        yield rows, batch_size * row_length(int(split.lengths[rows].max()) - 1, seq_len)


def of_windows(split: ConversationSplit, seq_len: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The conversations of each batch of packed windows in an epoch, and its positions."""
    source = PackedConversations(split, seq_len=seq_len, seed=1)
    for start in range(0, source.windows_per_epoch - batch_size + 1, batch_size):
        windows = source.conversations(np.arange(start, start + batch_size))
        yield np.concatenate(windows), batch_size * seq_len


def row_of(name: str, split: ConversationSplit, batches: Iterator[tuple[np.ndarray, int]]) -> list[str]:
    """The relative weights, and positions per token that is read."""
    limits = np.quantile(split.targets, np.arange(1, GROUPS) / GROUPS)
    weight, count, positions, tokens = np.zeros(GROUPS), np.zeros(GROUPS), 0, 0
    for rows, size in batches:
        targets = split.targets[rows]
        group = np.searchsorted(limits, targets)
        np.add.at(weight, group, targets / targets.sum())
        np.add.at(count, group, targets)
        positions, tokens = positions + size, tokens + int((split.lengths[rows] - 1).sum())
    relative = weight / count * count.sum() / weight.sum()
    return [name, *(f"{value:.3f}" for value in relative), f"{positions / tokens:.2f}"]


def main() -> None:
    cfg = compose(*sys.argv[1:])
    corpus, trainer = open_corpus(cfg, allow=frozenset())
    split = open_data(corpus, trainer).train
    sizes = cfg.trainer.seq_len or cfg.model.max_seq_len, cfg.trainer.batch_size * (cfg.trainer.grad_accum_steps or 1)
    shuffled = replace(split, group_by_length=False)
    ends = np.quantile(split.targets, np.arange(GROUPS + 1) / GROUPS).astype(int)
    names = [f"{low}…{high} targets" for low, high in pairwise(ends)]
    Table(
        columns=[Column(name=name) for name in ("", *names, "positions per token")],
        rows=[
            row_of("group_by_length=true", split, of_rows(split, *sizes)),
            row_of("group_by_length=false", shuffled, of_rows(shuffled, *sizes)),
            row_of("packing=best_fit", split, of_windows(split, *sizes)),
        ],
    ).show()


if __name__ == "__main__":
    main()
