"""How large activations are, and how much training changes them, at several widths: a coordinate check.

Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D.1: train a few steps at each width, and look whether the
size of any coordinate grows or shrinks with the width. In maximal update parametrization none does.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.trainer import clip
from tinyllm.utils.files import write_text
from tinyllm.utils.tables import csv_text

ATTENTION, FFN, STREAM, LOGITS = "attention", "feed-forward", "residual stream", "logits"
KINDS = (ATTENTION, FFN, STREAM, LOGITS)
"""What is looked at: what attention and feed-forward layers add, the stream behind each block, and the logits."""
SIZE, CHANGE = "size", "change"


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """Mean absolute values of one place at one step, over the tokens of a fixed batch."""

    width: int
    seed: int
    step: int
    """Optimizer steps before."""
    kind: str
    block: int | None
    """None: behind all blocks."""
    size: float
    change: float
    """Of the difference to the same place before the first step."""


class Place(NamedTuple):
    """Where an activation comes from."""

    kind: str
    block: int | None


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
    """Take a step on each batch at a constant learning rate; the coordinates before the first and after each.

    Args:
        probe_BT: tokens that the coordinates are taken on.
        lr: of groups without a factor of their own.
        grad_clip: largest norm of the gradient; 0: any.
    """
    objective = NextToken(model, chunk_tokens=None)
    before = activations(model, probe_BT)
    found = _coordinates(before, before, width=width, seed=seed, step=0)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, batch in enumerate(batches, start=1):
        model.train()
        objective(batch).share_of_step(weight=batch.targets.numel(), sequences=1.0).backward()
        clip(parameters, grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found += _coordinates(activations(model, probe_BT), before, width=width, seed=seed, step=step)
    return found


@torch.no_grad()
def activations(model: Any, ids_BT: Tensor) -> dict[Place, Tensor]:
    """What each place holds for some tokens, without dropout."""
    found: dict[Place, Tensor] = {}

    def keep(place: Place, module: Any, inputs: Any, output: Any) -> None:
        found[place] = output[0] if isinstance(output, tuple) else output

    model.eval()
    with ExitStack() as hooks:
        for i, block in enumerate(model.layers()):
            for kind, module in ((ATTENTION, block.attn), (FFN, block.ffn), (STREAM, block)):
                hooks.callback(module.register_forward_hook(partial(keep, Place(kind, i))).remove)
        found[Place(LOGITS, None)] = model.logits(model(ids_BT))
    return found


def _coordinates(
    now: dict[Place, Tensor], before: dict[Place, Tensor], *, width: int, seed: int, step: int
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
    """How one figure of one kind goes with the width, after the last step: figure ∝ width^slope."""

    kind: str
    figure: str
    """``size`` or ``change``."""
    slope: float
    error: float
    """Standard error of the fit."""
    low: float
    high: float
    """Between which the slope passes."""

    @property
    def passes(self) -> bool:
        """Whether it is where it should be; a figure that is no number is not."""
        return self.low <= self.slope <= self.high


def slopes(found: Sequence[Coordinate], *, growth: float, shrinkage: float) -> list[Slope]:
    """The slopes of sizes and changes against the width, both logarithmic, after the last step.

    One point for each width and seed, the geometric mean over blocks. A size passes if it grows no faster than
    width^growth; it may shrink, as the logits of a model that was not trained do in maximal update parametrization. A
    change passes if it also shrinks no faster than width^-shrinkage.
    """
    last = max(one.step for one in found)
    return [
        _fit(
            [one for one in found if one.step == last and one.kind == kind],
            figure,
            low=-shrinkage if figure == CHANGE else float("-inf"),
            high=growth,
        )
        for figure in (SIZE, CHANGE)
        for kind in KINDS
    ]


def _fit(found: Sequence[Coordinate], figure: str, *, low: float, high: float) -> Slope:
    from scipy.stats import linregress

    points = means(found, figure)
    logs = torch.tensor([[width, value] for (width, _), value in points.items()], dtype=torch.float64).log()
    fit = linregress(logs[:, 0].numpy(), logs[:, 1].numpy())
    return Slope(kind=found[0].kind, figure=figure, slope=float(fit.slope), error=float(fit.stderr), low=low, high=high)


def means(found: Iterable[Coordinate], figure: str) -> dict[tuple[int, int], float]:
    """The geometric mean over blocks, by width and seed."""
    values: dict[tuple[int, int], list[float]] = {}
    for one in found:
        values.setdefault((one.width, one.seed), []).append(getattr(one, figure))
    return {key: float(torch.tensor(some, dtype=torch.float64).log().mean().exp()) for key, some in values.items()}


def check(
    make: Callable[[int, int], tuple[Any, torch.optim.Optimizer]],
    batches: Sequence[Batch],
    probe_BT: Tensor,
    *,
    widths: Sequence[int],
    seeds: Iterable[int],
    lr: float,
    grad_clip: float,
    progress: Callable[[int, int], None] = lambda width, seed: None,
) -> list[Coordinate]:
    """The coordinates of all widths and seeds, on the same batches.

    Args:
        make: a model and its optimizer, of a width and a seed.
        progress: called before each.
    """
    found = []
    for width in widths:
        for seed in seeds:
            progress(width, seed)
            model, optimizer = make(width, seed)
            found += train_and_measure(
                model, optimizer, batches, probe_BT, lr=lr, grad_clip=grad_clip, width=width, seed=seed
            )
    return found


def write_csv(found: Sequence[Coordinate], path: Path) -> None:
    """One row for each coordinate."""
    names = list(Coordinate.__dataclass_fields__)
    write_text(path, csv_text(names, [list(asdict(one).values()) for one in found]))
