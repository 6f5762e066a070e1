"""The training state: everything that changes while a run trains, and its form in checkpoints."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.optim.base import Shapes, state_shapes
from tinyllm.optim.ema import NoAverage
from tinyllm.runs.state_schema import damaged
from tinyllm.training.distributed.strategy import Strategy


@dataclass(kw_only=True)
class TrainState:
    """The mutable state of a run.

    A checkpoint is this state, so that a resumed run continues bit for bit: whatever a step reads and changes belongs
    here or follows from seed and step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: NoAverage = field(default_factory=NoAverage)
    """Averaged weights (EMA), for evaluation and samples."""
    strategy: Strategy = field(default_factory=Strategy)
    """Which part of the state this process holds and writes."""
    step: int = 0
    """Finished optimizer steps, skipped ones included."""
    tokens: int = 0
    sequences: int = 0
    """Training sequences consumed: the position in the sampler's order."""
    flops: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    """Best value of the objective's selecting metric, ``val/loss`` for next-token prediction."""
    best_step: int | None = None
    skipped: int = 0
    """Number of consecutive latest steps that were skipped because of NaN or infinity."""
    window: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "steps": 0.0})
    """Sum of the training loss since the last log record. Saved, so that a resume in between changes no record."""
    owed: dict[str, float] | None = None
    """Metrics of a step whose evaluation was interrupted; a resume finishes it."""

    reference: Tensor | None = None
    """Log-probabilities of pairs before the first step, see ``LikelihoodObjective.reference``; None: not needed."""

    COUNTERS = ("step", "tokens", "sequences", "flops", "seconds", "best_loss", "best_step", "skipped")

    def weights(self) -> dict[str, Tensor]:
        """The full tensors of the model that this rank writes; all ranks must call it."""
        return self.strategy.part(own_tensors(self.model))

    def state_dict(self) -> dict[str, Any]:
        """What this rank writes besides the weights: plain containers, full tensors. All ranks must call it."""
        average = self.average.state_dict()
        shadow = {"shadow": self.strategy.part(average["shadow"])} if "shadow" in average else {}
        return {
            **{name: getattr(self, name) for name in self.COUNTERS},
            "window": dict(self.window),
            **({} if self.owed is None else {"owed": dict(self.owed)}),
            **({} if self.reference is None else {"reference": self.reference}),
            "optimizer": optimizer_state(self.optimizer, self.strategy),
            "scaler": self.scaler.state_dict(),
            "average": average | shadow,
            "rng": self.strategy.gather_objects(rng_state()),
        }

    def load_state_dict(self, state: dict[str, Any], *, file: object = None) -> None:
        """Continue from :meth:`state_dict`.

        Args:
            state: has passed the checks of :mod:`tinyllm.runs.state_schema`.
            file: its origin, for error messages.

        Raises:
            UserError: optimizer state or average do not fit the parameters.
        """
        # An optimizer without state is normal if every step was skipped. Steps that fp16's scaler skips are not counted
        # in ``skipped``, hence the exception for runs with a scaler.
        if not state["optimizer"] and state["skipped"] < state["step"] and not state["scaler"]:
            raise damaged(file, "optimizer is {}", f"that of {state['step']} steps")
        self._check_average(state.get("average", {}), file)
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        self.window = dict(state["window"])
        self.owed = state.get("owed")
        self.reference = None if state.get("reference") is None else state["reference"].clone()
        load_optimizer_state(self.optimizer, state["optimizer"], self.strategy, file=file)
        if state["scaler"]:  # empty if the run was not in fp16 until now
            self.scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state.get("average", {}))
        # Early checkpoints hold the state of rank 0 alone. Ranks beyond those of the checkpoint keep their own state,
        # which changes nothing: every step seeds the generators.
        saved = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]
        if self.strategy.rank < len(saved):
            set_rng_state(saved[self.strategy.rank])

    def _check_average(self, average: dict[str, Any], file: object) -> None:
        """Refuse averaged weights whose names or shapes are not those of the parameters."""
        expected = {name: tuple(p.shape) for name, p in self.model.named_parameters() if p.requires_grad}
        saved = {name: tuple(tensor.shape) for name, tensor in average.get("shadow", {}).items()}
        if saved and saved != expected:
            name = next(name for name in [*expected, *saved] if expected.get(name) != saved.get(name))
            raise damaged(file, f"average of {name} is {saved.get(name, 'missing')}", f"{expected.get(name, 'absent')}")


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that its checkpoints hold, by name.

    All of them, or with frozen weights (LoRA) only the parameters that train: the others are those of a checkpoint that
    the run names.
    """
    tensors = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if all(parameter.requires_grad for parameter in model.parameters()):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name in trained}


def optimizer_state(optimizer: torch.optim.Optimizer, strategy: Strategy) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, of the parameters that this rank writes.

    Hyper-parameters are left out: they are configuration.
    """
    names = {
        id(p): name for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    }
    states = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        full = {
            key: strategy.full_tensor(value) if isinstance(value, Tensor) else value for key, value in values.items()
        }
        if strategy.owns(name):
            states[name] = full
    return states


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Any]], strategy: Strategy, *, file: object = None
) -> None:
    """Give each parameter this rank's part of the state saved under its name; empties ``saved``.

    Raises:
        UserError: a name or shape does not match.
    """
    parameters = {
        name: (group, p)
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }
    mismatched = sorted(set(saved) ^ set(parameters)) if saved else []
    if mismatched:
        hint = f"{mismatched[0]}; init_from starts from the weights alone"
        raise UserError("the optimizer state does not match the model's parameters", file=file, hint=hint)
    for name in list(saved):
        (group, parameter), values = parameters[name], saved.pop(name)  # popped, so that no state is in memory twice
        check_entries(name, values, state_shapes(optimizer, group, parameter, values), parameter, file=file)
        optimizer.state[parameter] = {
            key: _placed(value, group, parameter, strategy) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }


def _placed(value: Tensor, group: dict[str, Any], parameter: Tensor, strategy: Strategy) -> Tensor:
    """A saved tensor of the state of a parameter, where the optimizer expects it.

    A fused kernel reads the number of steps on the parameter's device, other kernels on the host, as in
    ``torch.optim.Optimizer.load_state_dict``.
    """
    if value.ndim:
        return strategy.like(value, parameter)
    return value.to(parameter.device) if group.get("fused") or group.get("capturable") else value


def check_entries(
    name: str, values: dict[str, Any], expected: Shapes | None, parameter: Tensor, *, file: object
) -> None:
    """Refuse values that cannot be the optimizer state of a parameter.

    Args:
        expected: shape of each entry; None for an optimizer we do not know, of which only matrices are checked.

    Raises:
        UserError: an entry is missing, unexpected, or of a different shape.
    """
    shapes = {key: tuple(value.shape) if isinstance(value, Tensor) else () for key, value in values.items()}
    if expected is None:  # moments have the parameter's shape; scalars and vectors may have any
        shape = tuple(parameter.shape)
        expected = {key: shape if len(saved) > 1 else saved for key, saved in shapes.items()}
    for key in [*expected, *shapes]:
        if shapes.get(key) != expected.get(key):
            what = f"{key} of {name} is {shapes.get(key, 'missing')}"
            raise damaged(file, what, f"{expected.get(key, 'absent')}")
    steps = values.get("step")
    if "step" in expected and (steps is None or not 0 < float(steps) < float("inf")):
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
    """Restore every global random generator from :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
