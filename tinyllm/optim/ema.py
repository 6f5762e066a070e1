"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm.utils.tensors import local_tensor, part_of


class Average:
    """No average: what the loop asks of one, with nothing behind it."""

    def after_step(self, step: int) -> None:
        """Take the weights in when ``step`` steps are finished (0: none yet); not called for a skipped step."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In this context the model has the averaged weights, if there are any yet."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class EMA(Average):
    """s ← d·s + (1 − d)·w with d = min(decay, (1 + t)/(10 + t)), t updates so far (Polyak & Juditsky 1992).

    The shadow s starts as a copy of the weights w when ``start_step`` steps are finished, so the initialisation is no
    part of it unless it starts at 0, and there the small d of the first updates forgets it.

    Args:
        model: its parameters are averaged; buffers are not.
        decay: at most this much of the shadow stays in an update.
        update_every: steps between updates.
        start_step: finished steps at which it starts.
    """

    def __init__(self, model: nn.Module, *, decay: float, update_every: int, start_step: int) -> None:
        self.parameters = dict(model.named_parameters())
        self.decay, self.update_every, self.start_step = decay, update_every, start_step
        self.shadow: dict[str, Tensor] = {}
        self.updates = 0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if not self.shadow:
            if step >= self.start_step:
                self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}
        elif (step - self.start_step) % self.update_every == 0:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(list(self.shadow.values()), list(self.parameters.values()), 1 - decay)
            self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """In place: whoever wraps the model, or compiled it, holds on to the memory of its weights."""
        for name, shadow in self.shadow.items():
            here, there = local_tensor(shadow), local_tensor(self.parameters[name].detach())
            kept = there.clone()
            there.copy_(here)
            here.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": dict(self.shadow), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, its tensors whole; from that of no average, start with the next step."""
        self.updates = state.get("updates", 0)
        self.shadow = {}
        saved = state.get("shadow", {})
        for name in [one for one in self.parameters if one in saved]:  # in this order: several ranks saved in another
            self.shadow[name] = self.parameters[name].detach().clone()
            local_tensor(self.shadow[name]).copy_(part_of(saved[name], self.shadow[name]))
