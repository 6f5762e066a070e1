"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm.utils.tensors import local_tensor, part_of


class NoAverage:
    """Averages nothing; the interface of :class:`EMA`."""

    def after_step(self, step: int) -> None:
        """Update the average after ``step`` finished steps (0: before the first); not called for skipped steps."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights, once they exist."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class EMA(NoAverage):
    """s ← d·s + (1 − d)·w with d = min(decay, (1 + t)/(10 + t)), t updates so far (Polyak & Juditsky 1992).

    The shadow s starts as a copy of the weights w after ``start_step`` finished steps. If that is 0, the small d of the
    first updates makes it forget the initialization (the warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        model: the parameters that are trained are averaged, buffers are not.
        decay: largest d.
        update_every: steps between updates.
        start_step: finished steps before the average starts.
    """

    def __init__(self, model: nn.Module, *, decay: float, update_every: int, start_step: int) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
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
            # both dictionaries are in parameter order, so values pair up
            torch._foreach_lerp_(list(self.shadow.values()), list(self.parameters.values()), 1 - decay)
            self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:  # even if evaluation fails, training must go on, and save, with its own weights
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and shadow in place: wrappers and compiled code hold pointers to the weights' memory."""
        for name, shadow in self.shadow.items():
            average, weight = local_tensor(shadow), local_tensor(self.parameters[name].detach())
            saved = weight.clone()
            weight.copy_(average)
            average.copy_(saved)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": dict(self.shadow), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict` of full tensors; from one without an average, start at the next step."""
        self.updates = state.get("updates", 0)
        self.shadow = {}
        saved = state.get("shadow", {})
        # in parameter order: checkpoints written by several ranks are ordered differently
        for name in [name for name in self.parameters if name in saved]:
            self.shadow[name] = self.parameters[name].detach().clone()
            local_tensor(self.shadow[name]).copy_(part_of(saved[name], self.shadow[name]))
