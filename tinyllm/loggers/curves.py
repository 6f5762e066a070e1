"""``curves.png``: loss and learning rate of a run, drawn from ``metrics.jsonl`` alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import read_metrics, source_keys
from tinyllm.training.callbacks import Callback, Outcome
from tinyllm.utils.files import write_atomic
from tinyllm.utils.late_imports import library
from tinyllm.utils.text import short

INSTALL = "pip install matplotlib"
_TRAIN, _VAL, _LR, _GRID = "#9ab8d3", "#d1495b", "#5b8e7d", "#e3e6ea"
Series = tuple[list[float], list[float]]


class Curves(Callback):
    """Draws ``curves.png`` when the run ends, whether it finished, was interrupted or failed.

    Args:
        report: receives a sentence when the picture cannot be drawn; the run's exit code does not change.
    """

    def __init__(self, *, report: Callable[[str], None]) -> None:
        self._report = report

    def on_end(self, outcome: Outcome) -> None:
        try:
            draw_curves(outcome.run_dir)
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._report(f"curves.png was not drawn: {kind}{error}")


def draw_curves(run_dir: Path) -> Path | None:
    """Draw training and validation loss over tokens, with the learning rate below.

    Returns:
        The path of the picture; None if there is nothing to draw yet.
    """
    records = by_step(run_dir / METRICS)
    train, val, lr = (series(records, key) for key in ("train/loss", "val/loss", "train/lr"))
    if not train[0] and not val[0]:
        return None
    # Loaded here, because training would start 0.3 s later otherwise. Figure instead of pyplot: no global state, no
    # display backend.
    figure = library("matplotlib.figure", hint=INSTALL).Figure(figsize=(8, 5.2), dpi=150, layout="constrained")
    loss_axes, lr_axes = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    loss_axes.plot(*train, color=_TRAIN, linewidth=1.2, label="training")
    loss_axes.plot(*val, color=_VAL, linewidth=1.8, marker="o", markersize=4, label="validation")
    names = dict.fromkeys(name for record in records for name in record)
    for source, key in source_keys(names, "val", "loss").items():
        loss_axes.plot(*series(records, key), linewidth=0.9, linestyle="--", label=source)
    if val[0]:
        tokens, loss = min(zip(*val, strict=True), key=lambda point: point[1])
        at = {"xytext": (0, 10), "textcoords": "offset points", "ha": "right"}
        loss_axes.annotate(f"best {loss:.4f}", (tokens, loss), color=_VAL, **at)
    of_pairs = any("pref/loss" in record for record in records)
    loss_axes.set_ylabel("loss of a pair" if of_pairs else "loss (nats per token)")
    loss_axes.set_title(run_dir.resolve().name, loc="left", fontsize=10, color="#444444", parse_math=False)
    loss_axes.legend(frameon=False)
    lr_axes.plot(*lr, color=_LR, linewidth=1.4)
    lr_axes.set_ylabel("learning rate")
    lr_axes.set_ylim(bottom=0)
    lr_axes.set_xlabel("training tokens")
    ticker = library("matplotlib.ticker", hint=INSTALL)
    lr_axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda tokens, _: short(tokens).replace(".00", "")))
    for axes in (loss_axes, lr_axes):
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
    path = run_dir / "curves.png"
    write_atomic(path, lambda stream: figure.savefig(stream, format="png"))
    return path


def by_step(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file in step order, one per step; later records of a step update earlier ones."""
    records: dict[int, dict[str, Any]] = {}
    for record in read_metrics(path):
        records[record["step"]] = records.get(record["step"], {}) | record
    return [records[step] for step in sorted(records)]


def series(records: list[dict[str, Any]], key: str) -> Series:
    """Token counts and finite values of a metric. A record without a token count inherits that of the previous one."""
    xs: list[float] = []
    ys: list[float] = []
    tokens = 0.0
    for record in records:
        tokens = record.get("tokens", record.get("train/tokens", tokens))
        value = record.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            xs.append(tokens)
            ys.append(value)
    return xs, ys
