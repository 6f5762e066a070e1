"""PackedConversations: training windows of whole conversations, each once per epoch."""

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.chat.rows import ConversationSplit
from tinyllm.data.packed_windows import BEST_FIT, KEY
from tinyllm.data.packing import pack
from tinyllm.data.shuffle import in_epochs
from tinyllm.nn.loss import IGNORE


class PackedConversations:
    """Windows of ``seq_len`` inputs that hold whole conversations, packed by best-fit decreasing (``data.packing``).

    None is cut. Each is a document of its own, and so is the padding, which is no target. A conversation of n tokens
    takes n − 1 inputs, because its last token is a target only.

    The packing is the same in every epoch, and the order of the windows a new one; sample i is a pure function of
    (split, seq_len, seed, i), as in ``Sampler``.

    Args:
        split: the data.
        seq_len: inputs per window.
        seed: seed of the order.

    Attributes:
        windows_per_epoch: samples per epoch.

    Raises:
        UserError: see :meth:`ConversationSplit.fitting`.
    """

    def __init__(self, split: ConversationSplit, *, seq_len: int, seed: int) -> None:
        self.split, self.seq_len, self.seed = split, seq_len, seed
        self._rows = split.fitting(seq_len)
        self._sizes = split.lengths[self._rows] - 1
        self._packing = pack(self._sizes, seq_len)
        self.windows_per_epoch = self._packing.n_windows

    @property
    def n_left_out(self) -> int:
        """Conversations that are too long to be used."""
        return self.split.n_conversations - len(self._rows)

    @property
    def padding(self) -> float:
        """Share of the inputs of an epoch that are padding."""
        return 1 - int(self._sizes.sum()) / (self.windows_per_epoch * self.seq_len)

    @property
    def note(self) -> str:
        """A remark for the user on how the conversations are packed."""
        found, windows = f"{len(self._rows):,} conversations", f"{self.windows_per_epoch:,} windows"
        return f"{KEY}={BEST_FIT}: {found} in {windows} per epoch, {self.padding:.2%} padding; none is cut"

    def conversations(self, samples: np.ndarray) -> list[np.ndarray]:
        """The conversations in the window of each sample, by number, in increasing order."""
        windows = in_epochs(samples, self.windows_per_epoch, self.seed)
        return [self._rows[self._packing.of(window)] for window in windows.tolist()]

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples``."""
        shape = (len(samples), self.seq_len)
        inputs, doc_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        for place, rows in enumerate(self.conversations(samples)):
            at = 0
            for number, row in enumerate(rows.tolist()):
                read, predicted = self.split.row(row)
                span = slice(at, at + len(read))
                inputs[place, span], targets[place, span], doc_ids[place, span] = read, predicted, number
                at += len(read)
            doc_ids[place, at:] = len(rows)
        return Batch(
            inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), doc_ids=torch.from_numpy(doc_ids)
        )
