"""Coordinate check: how the size of activations, and their change in training, scale with the width.

Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D.1: train for a few steps at each width and see whether
any coordinate grows or shrinks with the width. In maximal update parametrization none does.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import linregress
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.trainer import clip
from tinyllm.utils.files import write_text
from tinyllm.utils.tables import csv_text

ATTENTION, FFN, STREAM, LOGITS = "attention", "feed-forward", "residual stream", "logits"
KINDS = (ATTENTION, FFN, STREAM, LOGITS)
"""Where activations are measured: attention and feed-forward outputs, the residual stream after each block, logits."""
SIZE, CHANGE = "size", "change"


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """Mean absolute activation of one place at one step, over the tokens of a fixed batch."""

    width: int
    seed: int
    step: int
    """Optimizer steps taken before the measurement."""
    kind: str
    block: int | None
    """None for the logits."""
    size: float
    """Mean absolute value."""
    change: float
    """Mean absolute difference from the value before the first step."""


class ActivationSite(NamedTuple):
    """Where an activation is measured."""

    kind: str
    block: int | None


def check(
    make: Callable[[int, int], tuple[Any, torch.optim.Optimizer]],
    batches: Sequence[Batch],
    probe_BT: Tensor,
    *,
    widths: Sequence[int],
    seeds: Iterable[int],
    lr: float,
    grad_clip: float,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Coordinate]:
    """Measure the coordinates of all widths and seeds on the same batches.

    Args:
        make: builds a model and its optimizer for a width and a seed.
        batches: one for each step.
        probe_BT: tokens on which activations are measured.
        progress: receives a line before each model.
    """
    coordinates = []
    for width in widths:
        for seed in seeds:
            progress(f"width {width}, seed {seed}")
            model, optimizer = make(width, seed)
            coordinates += train_and_measure(
                model, optimizer, batches, probe_BT, lr=lr, grad_clip=grad_clip, width=width, seed=seed
            )
    return coordinates


def train_and_measure(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    probe_BT: Tensor,
    *,
    lr: float,
    grad_clip: float,
    width: int,
    seed: int,
) -> list[Coordinate]:
    """Take a step on each batch at a constant learning rate; measure before the first step and after each.

    Args:
        probe_BT: tokens on which activations are measured.
        lr: learning rate; a parameter group multiplies it by its ``lr_scale``.
        grad_clip: maximum norm of the gradient; 0: no limit.
    """
    objective = NextToken(model)
    before = activations(model, probe_BT)
    coordinates = _coordinates(before, before, width=width, seed=seed, step=0)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, batch in enumerate(batches, start=1):
        model.train()
        objective(batch).share_of_step(weight=batch.targets.numel(), fraction=1.0).backward()
        clip(parameters, grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        coordinates += _coordinates(activations(model, probe_BT), before, width=width, seed=seed, step=step)
    return coordinates


@torch.no_grad()
def activations(model: Any, ids_BT: Tensor) -> dict[ActivationSite, Tensor]:
    """Activations at every place, in evaluation mode."""
    outputs: dict[ActivationSite, Tensor] = {}
    model.eval()
    with ExitStack() as hooks:
        for i, block in enumerate(model.layers()):
            for kind, module in ((ATTENTION, block.attn), (FFN, block.ffn), (STREAM, block)):
                hooks.callback(module.register_forward_hook(partial(_record, outputs, ActivationSite(kind, i))).remove)
        outputs[ActivationSite(LOGITS, None)] = model.logits(model(ids_BT))
    return outputs


def _record(
    outputs: dict[ActivationSite, Tensor], place: ActivationSite, module: Any, inputs: Any, output: Any
) -> None:
    """Forward hook. Feed-forward layers return their output together with routing statistics."""
    outputs[place] = output[0] if isinstance(output, tuple) else output


def _coordinates(
    now: dict[ActivationSite, Tensor], before: dict[ActivationSite, Tensor], *, width: int, seed: int, step: int
) -> list[Coordinate]:
    return [
        Coordinate(
            width=width,
            seed=seed,
            step=step,
            kind=place.kind,
            block=place.block,
            size=float(value.abs().mean()),
            change=float((value - before[place]).abs().mean()),
        )
        for place, value in now.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Power law after the last step: ``figure`` of a kind ∝ width^slope, and whether the slope is acceptable."""

    kind: str
    figure: str
    """``size`` or ``change``."""
    slope: float
    error: float
    """Standard error of the slope."""
    low: float
    high: float
    """Range of slopes that pass."""

    @property
    def passes(self) -> bool:
        """Whether the slope is in range; NaN is not."""
        return self.low <= self.slope <= self.high


def slopes(coordinates: Sequence[Coordinate], *, growth: float, shrinkage: float) -> list[Slope]:
    """Fit slopes of size and change against the width on log-log scale, after the last step.

    There is one point per width and seed: the geometric mean over blocks. A size passes if it grows no faster than
    width^growth. It may shrink, as the logits of an untrained model do in maximal update parametrization. A change must
    also shrink no faster than width^-shrinkage.
    """
    last = max(coordinate.step for coordinate in coordinates)
    return [
        _fit(
            [coordinate for coordinate in coordinates if coordinate.step == last and coordinate.kind == kind],
            figure,
            low=-shrinkage if figure == CHANGE else float("-inf"),
            high=growth,
        )
        for figure in (SIZE, CHANGE)
        for kind in KINDS
    ]


def _fit(coordinates: Sequence[Coordinate], figure: str, *, low: float, high: float) -> Slope:
    points = means(coordinates, figure)
    logs = torch.tensor([[width, value] for (width, _), value in points.items()], dtype=torch.float64).log()
    fit = linregress(logs[:, 0].numpy(), logs[:, 1].numpy())
    kind = coordinates[0].kind
    return Slope(kind=kind, figure=figure, slope=float(fit.slope), error=float(fit.stderr), low=low, high=high)


def means(coordinates: Iterable[Coordinate], figure: str) -> dict[tuple[int, int], float]:
    """Geometric mean over blocks, by width and seed."""
    # Geometric, because the slopes are fitted to logarithms.
    values: dict[tuple[int, int], list[float]] = {}
    for coordinate in coordinates:
        values.setdefault((coordinate.width, coordinate.seed), []).append(getattr(coordinate, figure))
    return {key: float(torch.tensor(blocks, dtype=torch.float64).log().mean().exp()) for key, blocks in values.items()}


def write_csv(coordinates: Sequence[Coordinate], path: Path) -> None:
    """Write one row per coordinate."""
    names = list(Coordinate.__dataclass_fields__)
    write_text(path, csv_text(names, [list(asdict(coordinate).values()) for coordinate in coordinates]))
