"""The tokens that follow prompts, one at a time, with a cache or without.

Past the context both ways follow one rule: when max_seq_len tokens are in view and another one comes, the
last ⌊max_seq_len/2⌋ stay in view, their positions start at 0 again, and the model reads them once. So cached
and uncached decoding see the same tokens at the same positions at every step.

Every row of a batch keeps its own length and its own positions: it sees what it would see alone.

Shapes: B rows (prompts times samples), T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from tinyllm.inference.sampling import TokenChooser


class LanguageModel(Protocol):
    """What generation and evaluation ask of a model."""

    max_seq_len: int
    vocab_size: int
    training: bool

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def head_weight(self) -> Tensor:
        """(V, d_model); asked by evaluation only."""

    def __call__(self, ids_BT: Tensor, *, cache: Any = None) -> Tensor:
        """Hidden states (B, T, d_model) after the last norm; with a cache, of the tokens that follow those in
        it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V)"""

    def make_cache(self, batch_size: int, max_len: int) -> Any:
        """An empty cache on the model's device, see :class:`tinyllm.nn.cache.Cache`."""

    def train(self, mode: bool = True) -> Any:
        """Sets ``training``."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The weights; asked by evaluation only, when a loss is not finite."""


Autocast = Callable[[], AbstractContextManager[Any]]


class Decoder:
    """The tokens in view of B rows, and what comes next: ``n_samples`` rows of each prompt, prompt after prompt.

    Args:
        prompts: the tokens of each, at least one; of more than max_seq_len the last ones are used.
        max_new_tokens: at least 1; sizes the cache.
        autocast: makes the context in which the model runs.
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
        """Tokens in view of each row."""
        most = min(model.max_seq_len, max(self.lengths) + max_new_tokens - 1)  # that are ever in view
        self.ids_BT = torch.zeros(len(in_view), most, dtype=torch.long, device=model.device)
        for row, ids in enumerate(in_view):
            self.ids_BT[row, : len(ids)] = torch.tensor(ids, device=model.device)
        with autocast():  # the cache holds what attention computes in
            self.cache = model.make_cache(len(in_view), most) if kv_cache else None
        self.next_B1: Tensor | None = None
        """The last token in view of each row, which the cache does not hold yet."""

    @torch.no_grad()  # not inference_mode: in it, autocast would round the weights anew for every token
    def logits(self) -> Tensor:
        """(B, V): of the token after those in view."""
        with self.autocast():
            if self.cache is None:
                hidden_BTD = self.model(self.ids_BT[:, : max(self.lengths)])  # none sees what comes after it
                hidden_BD = hidden_BTD[range(len(self.lengths)), [length - 1 for length in self.lengths]]
            elif self.next_B1 is None:
                hidden_BD = self._read_prompts()
            else:
                hidden_BD = self.model(self.next_B1, cache=self.cache)[:, -1]
            return self.model.logits(hidden_BD)

    def _read_prompts(self) -> Tensor:
        """Read each prompt once, whatever the number of its samples; hidden states (B, D) of their last tokens."""
        assert self.cache is not None
        last = []
        for first in range(0, len(self.lengths), self.n_samples):
            last += [self._read(first)] * self.n_samples
            self.cache.rows(first, first + self.n_samples).repeat_first()
        return torch.cat(last)

    def _read(self, row: int) -> Tensor:
        """Fill the empty memory of a row with the tokens in view; the hidden state (1, D) of the last one."""
        assert self.cache is not None
        ids_1T = self.ids_BT[row : row + 1, : self.lengths[row]]
        hidden_BTD: Tensor = self.model(ids_1T, cache=self.cache.rows(row, row + 1))
        return hidden_BTD[:, -1]

    @torch.no_grad()
    def append(self, ids_B: Tensor) -> None:
        """Bring the next token of each row into view."""
        for row, length in enumerate(self.lengths):
            if length == self.model.max_seq_len:
                self._shorten(row)
        self.next_B1 = ids_B.to(self.ids_BT.device)[:, None]
        ends_B1 = torch.tensor(self.lengths, device=self.ids_BT.device)[:, None]
        self.ids_BT.scatter_(1, ends_B1, self.next_B1)
        self.lengths = [length + 1 for length in self.lengths]

    def _shorten(self, row: int) -> None:
        """Make room: with the token that comes, the last ⌊max_seq_len/2⌋ are in view (at least that one)."""
        kept = max(self.model.max_seq_len // 2, 1) - 1
        self.ids_BT[row, :kept] = self.ids_BT[row, self.lengths[row] - kept : self.lengths[row]].clone()
        self.lengths[row] = kept
        if self.cache is not None:
            self.cache.rows(row, row + 1).reset()
            if kept:
                with self.autocast():
                    self._read(row)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this ascending order, after the first logits."""
        if self.cache is not None:
            self.cache = self.cache.keep(rows)
        self.ids_BT = self.ids_BT[rows]
        self.lengths = [self.lengths[row] for row in rows]


def decode(
    decoder: Decoder, chooser: TokenChooser, *, max_new_tokens: int, ended: Sequence[bool] = ()
) -> Iterator[list[tuple[int, int]]]:
    """Yields the next token of each row that has not ended, as pairs of row and token, at most max_new_tokens times.

    Args:
        ended: read after each step, if given: a row for which it has become true is not computed any more.
    """
    rows = list(range(len(decoder.lengths)))
    for done in range(1, max_new_tokens + 1):
        ids_B = chooser.choose(decoder.logits())
        yield list(zip(rows, ids_B.tolist(), strict=True))
        going = [i for i, row in enumerate(rows) if not (ended and ended[row])]
        if done == max_new_tokens or not going:
            return
        if len(going) < len(rows):  # in fp32, 8 rows take twice the time of one
            decoder.keep(going)
            chooser.keep(going)
            rows, ids_B = [rows[i] for i in going], ids_B[going]
        decoder.append(ids_B)
