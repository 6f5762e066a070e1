"""A model whose weights are sharded over ranks, which generate different texts with it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class TogetherModel:
    """A language model in whose every forward pass all ranks must take part, since each holds a part of the weights.

    The ranks have different prompts, and so need different numbers of passes. Before each pass they exchange whether
    one of them needs it; a rank that has finished takes part with a single token.

    Args:
        model: the sharded model; all else that is asked of this object is asked of it.
        any_rank: given a fact of this rank, whether it holds on any; all ranks must call it.
    """

    def __init__(self, model: Any, any_rank: Callable[[bool], bool]) -> None:
        self._model, self._any_rank = model, any_rank

    def __call__(self, ids_BT: Tensor, *, cache: Any = None, doc_ids: Tensor | None = None) -> Tensor:
        self._any_rank(True)
        hidden_BTD: Tensor = self._model(ids_BT, cache=cache, doc_ids=doc_ids)
        return hidden_BTD

    @torch.no_grad()
    def finish(self) -> None:
        """Take part in the passes of the other ranks until none needs one."""
        while self._any_rank(False):
            self._model(torch.zeros(1, 1, dtype=torch.int64, device=self._model.device))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
