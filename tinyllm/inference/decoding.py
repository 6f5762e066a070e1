"""Autoregressive decoding: the tokens that follow prompts, one at a time, with or without a cache.

Generated text may outgrow the context. When the view holds max_seq_len tokens and one more is appended, the view
shrinks to the last ⌊max_seq_len/2⌋ tokens, including the new one; their positions start at 0 again, and the model reads
them once. Cached and uncached decoding follow the same rule, so they see the same tokens at the same positions at every
step.

Every row of a batch has its own length and its own positions, so it sees exactly what it would see alone.

Shapes: B rows (prompts times samples), T tokens, V vocabulary, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from tinyllm.inference.sampling import TokenChooser
from tinyllm.inference.step_graphs import step_graphs


class LanguageModel(Protocol):
    """The interface of a model that generation and evaluation need."""

    max_seq_len: int
    vocab_size: int
    training: bool

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    def head_weight(self) -> Tensor:
        """The weights of the output head, (V, D); used by evaluation only."""

    def __call__(self, ids_BT: Tensor, *, cache: Any = None, doc_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm. With a cache, the tokens follow those in the cache.

        Args:
            doc_ids: (B, T) document of each token, in evaluation.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, D)."""

    def make_cache(self, batch_size: int, max_len: int) -> Any:
        """An empty cache on the model's device, see :class:`tinyllm.nn.cache.Cache`."""

    def train(self, mode: bool = True) -> Any:
        """Set ``training``."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by name; used by evaluation only, when a loss is not finite."""


Autocast = Callable[[], AbstractContextManager[Any]]
"""Returns the context manager in which a model runs."""


class Decoder:
    """The tokens in view of every row of a batch, and the logits of the tokens that follow.

    The rows are ``n_samples`` copies of each prompt, prompt after prompt.

    Args:
        prompts: token ids of each prompt, at least one token; only the last max_seq_len tokens are used.
        max_new_tokens: at least 1; limits the size of the cache.
        autocast: returns the context manager in which the model runs.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        n_samples: int,
        max_new_tokens: int,
        kv_cache: bool,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.model, self.autocast, self.n_samples = model, autocast, n_samples
        in_view = [list(prompt[-model.max_seq_len :]) for prompt in prompts for _ in range(n_samples)]
        self.lengths = [len(ids) for ids in in_view]
        """Number of tokens in view of each row."""
        longest = min(model.max_seq_len, max(self.lengths) + max_new_tokens - 1)  # view that is ever needed
        self.ids_BT = torch.zeros(len(in_view), longest, dtype=torch.long, device=model.device)
        for row, ids in enumerate(in_view):
            self.ids_BT[row, : len(ids)] = torch.tensor(ids, device=model.device)
        with autocast():  # the cache has the dtype that attention computes in
            self.cache = model.make_cache(len(in_view), longest) if kv_cache else None
        self.graphs = step_graphs(model, self.cache)
        self.next_B1: Tensor | None = None
        """The last token in view of each row, which is not in the cache yet."""

    @torch.no_grad()  # not inference_mode: autocast would then cast the weights again for every token
    def logits(self) -> Tensor:
        """Logits (B, V) of the token after those in view."""
        with self.autocast():
            if self.cache is None:
                # Shorter rows are padded at the end; causal attention keeps the padding out of their last position.
                hidden_BTD = self.model(self.ids_BT[:, : max(self.lengths)])
                hidden_BD = hidden_BTD[range(len(self.lengths)), [length - 1 for length in self.lengths]]
            elif self.next_B1 is None:
                hidden_BD = self._read_prompts()
            else:
                if self.graphs is not None:
                    logits_BV = self.graphs.logits(self.next_B1, self.cache.lengths_B)
                    if logits_BV is not None:
                        return logits_BV
                hidden_BD = self.model(self.next_B1, cache=self.cache)[:, -1]
            return self.model.logits(hidden_BD)

    def _read_prompts(self) -> Tensor:
        """Fill the cache with the prompts, each read once for all its samples; hidden states (B, D) of last tokens."""
        assert self.cache is not None
        hidden = []
        for first in range(0, len(self.lengths), self.n_samples):
            hidden += [self._read(first)] * self.n_samples
            self.cache.rows(first, first + self.n_samples).repeat_first()
        return torch.cat(hidden)

    def _read(self, row: int) -> Tensor:
        """Fill the empty cache of a row with its tokens in view; the hidden state (1, D) of the last one."""
        assert self.cache is not None
        ids_1T = self.ids_BT[row : row + 1, : self.lengths[row]]
        hidden_BTD: Tensor = self.model(ids_1T, cache=self.cache.rows(row, row + 1))
        return hidden_BTD[:, -1]

    @torch.no_grad()
    def append(self, ids_B: Tensor) -> None:
        """Append the next token of each row to its view."""
        for row, length in enumerate(self.lengths):
            if length == self.model.max_seq_len:
                self._shorten(row)
        device = self.ids_BT.device
        self.next_B1 = ids_B.to(device, non_blocking=True)[:, None]
        ends_B1 = torch.tensor(self.lengths).to(device, non_blocking=True)[:, None]
        self.ids_BT.scatter_(1, ends_B1, self.next_B1)
        self.lengths = [length + 1 for length in self.lengths]

    def _shorten(self, row: int) -> None:
        """Shrink a full view to ⌊max_seq_len/2⌋ tokens (at least one), counting the token about to be appended."""
        kept = max(self.model.max_seq_len // 2, 1) - 1
        self.ids_BT[row, :kept] = self.ids_BT[row, self.lengths[row] - kept : self.lengths[row]].clone()
        self.lengths[row] = kept
        if self.cache is not None:
            self.cache.rows(row, row + 1).reset()
            if kept:
                with self.autocast():
                    self._read(row)

    def keep(self, rows: list[int]) -> None:
        """Continue with these rows only, given in ascending order; not before the first logits."""
        if self.cache is not None:
            self.cache = self.cache.keep(rows)
        self.ids_BT = self.ids_BT[rows]
        self.lengths = [self.lengths[row] for row in rows]


def decode(
    decoder: Decoder, chooser: TokenChooser, *, max_new_tokens: int, ended: Sequence[bool] = ()
) -> Iterator[list[tuple[int, int]]]:
    """Yields, at most max_new_tokens times, the next token of each unfinished row as pairs (row, token).

    Args:
        ended: whether each row is finished; read after every step, so the caller may change it. Finished rows are no
            longer computed.
    """
    rows = list(range(len(decoder.lengths)))
    for step in range(1, max_new_tokens + 1):
        ids_B = chooser.choose(decoder.logits())
        yield list(zip(rows, ids_B.tolist(), strict=True))
        unfinished = [i for i, row in enumerate(rows) if not (ended and ended[row])]
        if step == max_new_tokens or not unfinished:
            return
        if len(unfinished) < len(rows):  # dropping rows pays: on a CPU in fp32, 8 rows take twice as long as one
            decoder.keep(unfinished)
            chooser.keep(unfinished)
            rows, ids_B = [rows[i] for i in unfinished], ids_B[unfinished]
        decoder.append(ids_B)
