"""PackedWindows: training windows of whole documents, each once per epoch."""

from functools import cached_property

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.data.documents import BLOCK, check_documents
from tinyllm.data.packing import pack
from tinyllm.data.shuffle import in_epochs
from tinyllm.data.token_data import Split
from tinyllm.nn.loss import IGNORE

BEST_FIT = "best_fit"
KEY = "dataset.packing"


class PackedWindows:
    """Windows of ``seq_len`` inputs that hold whole documents, packed by best-fit decreasing (``data.packing``).

    A document is predicted from its beginning: its inputs are the end-of-text token of the one before and its own
    tokens but the last, its targets are its own tokens, the end-of-text token included. Only a document longer than a
    window is cut, into windows of its own and a rest. What a window does not fill is padding, which is no target and a
    document of its own. Every token of the split is a target once per epoch.

    The packing is the same in every epoch, and the order of the windows a new one; sample i is a pure function of
    (split, seq_len, seed, i), as in ``Sampler``.

    Args:
        split: the data.
        seq_len: inputs per window.
        seed: seed of the order.

    Attributes:
        starts: where each piece starts in the split; the last entry is its end. A piece is a document, or a part of
            one that is longer than a window.
        windows_per_epoch: samples per epoch.
        n_cut: documents that are cut.

    Raises:
        UserError: the split has no borders between documents.
    """

    def __init__(self, split: Split, *, seq_len: int, seed: int) -> None:
        check_documents(split, key=KEY, value=BEST_FIT)
        self.split, self.seq_len, self.seed = split, seq_len, seed
        starts = document_starts(split)
        lengths = np.diff(starts)
        self.n_documents, self.n_cut = len(lengths), int((lengths > seq_len).sum())
        self.starts = cut(starts, seq_len)
        self._packing = pack(np.diff(self.starts), seq_len)
        self.windows_per_epoch = self._packing.n_windows

    @property
    def padding(self) -> float:
        """Share of the inputs of an epoch that are padding."""
        return 1 - self.split.n_tokens / (self.windows_per_epoch * self.seq_len)

    @cached_property
    def note(self) -> str:
        """A remark for the user on how the documents are packed."""
        documents, windows = f"{self.n_documents:,} documents", f"{self.windows_per_epoch:,} windows"
        cut = f"{self.n_cut:,} longer than a window {'is' if self.n_cut == 1 else 'are'} cut"
        return f"{KEY}={BEST_FIT}: {documents} in {windows} per epoch, {self.padding:.2%} padding; {cut}"

    def windows(self, samples: np.ndarray) -> np.ndarray:
        """The window of each sample."""
        return in_epochs(samples, self.windows_per_epoch, self.seed)

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows of ``samples``, the pieces in each in the order of the split."""
        shape = (len(samples), self.seq_len)
        inputs, doc_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        eot_id = self.split.eot_id
        assert eot_id is not None  # check_documents refuses such data
        for row, window in enumerate(self.windows(samples).tolist()):
            at = number = 0
            for number, piece in enumerate(self._packing.of(window).tolist(), start=1):
                start, stop = self.starts[piece : piece + 2].tolist()
                end = at + stop - start
                ids = self.split.read(start, stop)
                inputs[row, at] = self.split.ids[start - 1] if start else eot_id
                inputs[row, at + 1 : end], targets[row, at:end] = ids[:-1], ids
                doc_ids[row, at:end] = number - 1
                at = end
            doc_ids[row, at:] = number
        return Batch(
            inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), doc_ids=torch.from_numpy(doc_ids)
        )


def document_starts(split: Split) -> np.ndarray:
    """Where each document starts, and the end of the split, int64: after every end-of-text token."""
    ends = [
        np.flatnonzero(split.ids[first : first + BLOCK] == split.eot_id) + (first + 1)
        for first in range(0, split.n_tokens, BLOCK)
    ]
    starts = np.concatenate([[0], *ends])
    return starts if starts[-1] == split.n_tokens else np.append(starts, split.n_tokens)


def cut(starts: np.ndarray, size: int) -> np.ndarray:
    """Where the pieces start if each document is cut every ``size`` tokens, and the end of the last."""
    lengths = np.diff(starts)
    pieces = -(-lengths // size)
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # number within the document
    return np.append(np.repeat(starts[:-1], pieces) + within * size, starts[-1])
