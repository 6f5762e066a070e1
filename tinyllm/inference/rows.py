"""Rows that are decoded together while others join and leave: continuous batching without the scheduling.

Shapes: B rows, T tokens, V vocabulary, D model width.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.step_graphs import step_graphs
from tinyllm.models.transformer import Transformer
from tinyllm.nn.decode_step import step_session

Member = TypeVar("Member")


class RowBatch(Generic[Member]):
    """Sequences of different lengths in the fixed slots of one cache; each may join, grow and leave at any step.

    The rows occupy the first slots, so a step reads a view of the cache and copies nothing. When a row leaves, the last
    one moves into its slot: ``members`` always says whose row is where. A row sees exactly what it would see alone.

    The caller sets the model to evaluation mode. Use one thread at a time.

    Args:
        n_slots: most rows at a time.
        max_len: most tokens in a row, at most the model's ``max_seq_len``.
        autocast: returns the context manager in which the model runs.

    Attributes:
        members: the caller's object for each row, in the order of the slots.
    """

    def __init__(self, model: LanguageModel, *, n_slots: int, max_len: int, autocast: Autocast = nullcontext) -> None:
        self.model, self.n_slots, self.max_len, self.autocast = model, n_slots, max_len, autocast
        with autocast():  # the cache has the dtype that attention computes in
            self.cache = model.make_cache(n_slots, max_len)
        self.graphs = step_graphs(model, self.cache)
        step = model.decode_step if isinstance(model, Transformer) and model.output_multiplier == 1 else None
        self.session = step_session(step, self.cache)
        self.members: list[Member] = []

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.members)

    def length(self, row: int) -> int:
        """Number of tokens in a row."""
        return int(self.cache.lengths_B[row])

    def join(self, member: Member, *, copy_of: int | None = None) -> int:
        """Add a row and return its number, the last one.

        Args:
            copy_of: the row whose tokens it begins with; None: it is empty.

        Raises:
            ValueError: all slots are taken.
        """
        row = len(self.members)
        if row == self.n_slots:
            raise ValueError(f"all {self.n_slots} slots are taken")
        if copy_of is None:
            self.cache.rows(row, row + 1).reset()
        else:
            self.cache.copy_row(copy_of, row)
        self.members.append(member)
        return row

    def leave(self, row: int, *, keep_last: bool = False) -> None:
        """Remove a row; the last one takes its number.

        Args:
            keep_last: the last row stays the last: the one before it takes the number. For a row that is still being
                read while those before it are decoded.
        """
        last = len(self.members) - 1
        moved = [row, last - 1, last] if keep_last and row < last else [row, last]
        for target, source in pairwise(moved):
            if target != source:
                self.members[target] = self.members[source]
                self.cache.copy_row(source, target)
        self.members.pop()

    @torch.no_grad()  # not inference_mode: autocast would then cast the weights again for every token
    def read(self, row: int, ids: Sequence[int]) -> Tensor:
        """Append tokens to a row: a prompt or a piece of one, or the result of a tool.

        Returns:
            Hidden states (T, D) for ``model.logits``; the last one is followed by the row's next token.
        """
        ids_1T = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
        with self.autocast():
            hidden_1TD: Tensor = self.model(ids_1T, cache=self.cache.rows(row, row + 1))
        return hidden_1TD[0]

    def can_read_together(self, shortest: int, longest: int) -> bool:
        """Whether :meth:`read_together` takes prompts of ``shortest`` to ``longest`` tokens.

        Not if a window has fewer slots, since the filling would overwrite what it still shows, and not with short
        convolutions, which remember the last tokens whatever they are. Nor if alone they are so short that other
        kernels compute their products, which those of the head tell: their bits would depend on the other prompts.
        """
        head = getattr(self.model, "head", None)
        if shortest <= getattr(head, "most_kernel_rows", 0):
            return False
        return all(not layer.recent and longest <= layer.n_slots for layer in self.cache.layers)

    @torch.no_grad()
    def read_together(self, first: int, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Read the prompts of several empty rows, first … first+n−1, in one pass.

        Shorter ones are filled up with tokens that no row sees: those that follow overwrite them.

        Returns:
            Of each prompt the hidden states (T, D), as :meth:`read` gives them.
        """
        lengths = [len(ids) for ids in prompts]
        ids_NT = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, ids in enumerate(prompts):
            ids_NT[row, : len(ids)] = torch.tensor(list(ids))
        rows = self.cache.rows(first, first + len(prompts))
        with self.autocast():
            hidden_NTD: Tensor = self.model(ids_NT.to(self.model.device), cache=rows)
        rows.lengths_B.copy_(torch.tensor(lengths))
        return [hidden_TD[:length] for hidden_TD, length in zip(hidden_NTD, lengths, strict=True)]

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append a token to each of the first B rows; the logits (B, V) of the tokens that follow."""
        hidden_BD = None if self.session is None else self.session.hidden(ids)
        return self._step(ids) if hidden_BD is None else self.logits(hidden_BD)

    @torch.no_grad()
    def _step(self, ids: Sequence[int]) -> Tensor:
        ids_B1 = torch.tensor(ids, dtype=torch.long).to(self.model.device, non_blocking=True)[:, None]
        with self.autocast():
            if self.graphs is not None:
                logits_BV = self.graphs.logits(ids_B1, self.cache.lengths_B[: len(ids)])
                if logits_BV is not None:
                    return logits_BV
            return self.logits(self.model(ids_B1, cache=self.cache.rows(0, len(ids)))[:, -1])

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, D)."""
        with self.autocast():
            return self.model.logits(hidden)
