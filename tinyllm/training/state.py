"""Everything about a run that changes while it trains, in one place, and how it goes to disk and back."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.optim.ema import Average
from tinyllm.training.distributed import Strategy


@dataclass(kw_only=True)
class TrainState:
    """The mutable state of a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average = field(default_factory=Average)
    """Of the weights, for evaluation and samples."""
    strategy: Strategy = field(default_factory=Strategy)
    """What this process has of it all."""
    step: int = 0
    """Finished optimizer steps."""
    tokens: int = 0
    sequences: int = 0
    """Training sequences consumed: where the sampler stands."""
    flops: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    skipped: int = 0
    """Steps skipped in a row for a value that was not finite."""
    window: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "steps": 0.0})
    """Sum of the losses since the last record, so that a resume in between changes no record."""
    owed: dict[str, float] | None = None
    """The record of the step as far as it goes, when a signal broke its evaluation off; None: nothing is owed."""

    COUNTERS = ("step", "tokens", "sequences", "flops", "seconds", "best_loss", "best_step", "skipped")

    def weights(self) -> dict[str, Tensor]:
        """Those of the model's tensors that this rank writes, whole; every rank has to call it."""
        return self.strategy.part(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and whole tensors that this rank writes beside the weights; every rank has to call it."""
        average = self.average.state_dict()
        shadow = {"shadow": self.strategy.part(average["shadow"])} if "shadow" in average else {}
        return {
            **{name: getattr(self, name) for name in self.COUNTERS},
            "window": dict(self.window),
            **({} if self.owed is None else {"owed": dict(self.owed)}),
            "optimizer": optimizer_state(self.optimizer, self.strategy),
            "scaler": self.scaler.state_dict(),
            "average": average | shadow,
            "rng": self.strategy.gather_objects(rng_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            UserError: something is missing, or the optimizer's state is of other parameters.
        """
        missing = sorted({*self.COUNTERS, "window", "optimizer", "scaler", "rng"} - state.keys())
        if missing:
            raise UserError("the checkpoint's state is not whole", key="resume", value=missing[0], hint="it is missing")
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        self.window = dict(state["window"])
        self.owed = state.get("owed")
        load_optimizer_state(self.optimizer, state["optimizer"], self.strategy)
        self.scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state.get("average", {}))
        saved = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # once there was rank 0 only
        if self.strategy.rank < len(saved):  # a rank more than there were keeps its own: each step seeds anew
            set_rng_state(saved[self.strategy.rank])


def optimizer_state(optimizer: torch.optim.Optimizer, strategy: Strategy) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name, of those that this rank writes; hyper-parameters are configuration."""
    names = {
        id(p): name for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    }
    found = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        whole = {key: strategy.whole(one) if isinstance(one, Tensor) else one for key, one in values.items()}
        if strategy.owns(name):
            found[name] = whole
    return found


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Any]], strategy: Strategy
) -> None:
    """Give each parameter the state that was saved under its name, or its part of it; ``saved`` is used up.

    Raises:
        UserError: a name or shape does not match.
    """
    known = {
        name: p for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    }
    strange = sorted(set(saved) ^ set(known)) if saved else []
    if strange:
        raise UserError(
            "optimizer state of other parameters",
            key="resume",
            value=strange[0],
            hint="init_from starts from the weights alone",
        )
    for name in list(saved):
        parameter, values = known[name], saved.pop(name)  # copied one by one, so that nothing is there twice
        moved = {}
        for key, value in values.items():
            # moments have the parameter's shape; an optimizer may keep vectors of another length beside them
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape != parameter.shape:
                raise UserError(
                    "optimizer state of another shape", key="resume", value=name, hint=f"{key} is {tuple(value.shape)}"
                )
            moved[key] = strategy.like(value, parameter) if isinstance(value, Tensor) and value.ndim else value
        optimizer.state[parameter] = moved


def rng_state() -> dict[str, Any]:
    """The state of every global random generator, as plain containers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every global random generator where :func:`rng_state` found it."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
