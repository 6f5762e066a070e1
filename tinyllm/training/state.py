"""Everything about a run that changes while it trains, in one place, and how it goes to disk and back."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.optim.ema import Average
from tinyllm.optim.state_shapes import Shapes, state_shapes
from tinyllm.runs.state_schema import damaged
from tinyllm.training.distributed.strategy import Strategy


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

    def load_state_dict(self, state: dict[str, Any], *, file: object = None) -> None:
        """Continue from :meth:`state_dict`.

        Args:
            state: its fields are as :mod:`tinyllm.runs.state_schema` has them.
            file: where it comes from, for messages.

        Raises:
            UserError: the optimizer's state or the average is of other parameters.
        """
        # A step that fp16's scaler skips is not counted in ``skipped``, and leaves the optimizer as it was too.
        if not state["optimizer"] and state["skipped"] < state["step"] and not state["scaler"]:
            raise damaged(file, "optimizer is {}", f"that of {state['step']} steps")
        self._check_average(state.get("average", {}), file)
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        self.window = dict(state["window"])
        self.owed = state.get("owed")
        load_optimizer_state(self.optimizer, state["optimizer"], self.strategy, file=file)
        if state["scaler"]:  # else the run had another precision until now
            self.scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state.get("average", {}))
        saved = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # once there was rank 0 only
        if self.strategy.rank < len(saved):  # a rank more than there were keeps its own: each step seeds anew
            set_rng_state(saved[self.strategy.rank])

    def _check_average(self, average: dict[str, Any], file: object) -> None:
        """Refuse averaged weights that are not those of the model's parameters."""
        shadow = average.get("shadow", {})
        wanted = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        found = {name: tuple(one.shape) for name, one in shadow.items()}
        if found and found != wanted:
            name = next(one for one in [*wanted, *found] if wanted.get(one) != found.get(one))
            raise damaged(file, f"average of {name} is {found.get(name, 'missing')}", f"{wanted.get(name, 'absent')}")


def optimizer_state(optimizer: torch.optim.Optimizer, strategy: Strategy) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name, of those that this rank writes; hyper-parameters are configuration."""
    names = {
        id(p): name for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    }
    found = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        whole = {key: strategy.full_tensor(one) if isinstance(one, Tensor) else one for key, one in values.items()}
        if strategy.owns(name):
            found[name] = whole
    return found


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Any]], strategy: Strategy, *, file: object = None
) -> None:
    """Give each parameter the state that was saved under its name, or its part of it; ``saved`` is used up.

    Raises:
        UserError: a name or shape does not match.
    """
    known = {
        name: (group, p)
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }
    strange = sorted(set(saved) ^ set(known)) if saved else []
    if strange:
        hint = f"{strange[0]}; init_from starts from the weights alone"
        raise UserError("optimizer state of other parameters", file=file, hint=hint)
    for name in list(saved):
        (group, parameter), values = known[name], saved.pop(name)  # one by one, so that nothing is there twice
        check_entries(name, values, state_shapes(optimizer, group, parameter, values), parameter, file=file)
        moved = {}
        for key, value in values.items():
            moved[key] = strategy.like(value, parameter) if isinstance(value, Tensor) and value.ndim else value
        optimizer.state[parameter] = moved


def check_entries(name: str, values: dict[str, Any], wanted: Shapes | None, parameter: Tensor, *, file: object) -> None:
    """Refuse what is no state of a parameter.

    Args:
        wanted: the shape of each entry; None: unknown, then only tensors of the wrong shape are refused.

    Raises:
        UserError: an entry is missing, too many, or of another shape.
    """
    found = {key: tuple(value.shape) if isinstance(value, Tensor) else () for key, value in values.items()}
    if wanted is None:  # moments have the parameter's shape, and vectors of another length may stand beside them
        shape = tuple(parameter.shape)
        wanted = {key: shape if len(one) > 1 else one for key, one in found.items()}
    for key in [*wanted, *found]:
        if found.get(key) != wanted.get(key):
            what = f"{key} of {name} is {found.get(key, 'missing')}"
            raise damaged(file, what, f"{wanted.get(key, 'absent')}")
    steps = values.get("step")
    if "step" in wanted and (steps is None or not 0 < float(steps) < float("inf")):
        raise damaged(file, f"step of {name} is {steps}", "above 0")


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
