"""``python -m tinyllm.coord_check``: run a coordinate check, show its slopes and verdict."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.learning_rates import origin_of_rate
from tinyllm.errors import UserError
from tinyllm.runs.directory import auto_path
from tinyllm.studies.coord_check.coordinates import CHANGE, SIZE, Slope, check, slopes, write_csv
from tinyllm.studies.coord_check.picture import LABELS, draw
from tinyllm.studies.coord_check.widths import Models, check_settings, open_batches
from tinyllm.utils.device import pick_device
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import say, silent

NAME = "coord_check"
VERDICTS = {True: "pass", False: "FAIL"}


def coord_check(cfg: DictConfig, invocation: Invocation) -> int:
    """Run the check and report it; returns the exit code, which is 1 if a slope is out of range.

    Raises:
        UserError: a setting is wrong, the sizes at a width do not fit together, or the data is too small.
    """
    check_settings(cfg, invocation.typed)
    models = Models(cfg, invocation)
    directory = _new_directory(cfg.out)
    device = pick_device(cfg.trainer.device)
    vocab_size, (*batches, probe) = open_batches(cfg, invocation, device=device)
    coordinates = check(
        partial(models.build, vocab_size=vocab_size, device=device),
        batches,
        probe.inputs,
        widths=cfg.widths,
        seeds=range(cfg.seed, cfg.seed + cfg.seeds),
        lr=cfg.optimizer.lr,
        grad_clip=cfg.trainer.grad_clip,
        progress=silent if invocation.json else say,
    )
    fits = slopes(coordinates, growth=cfg.growth, shrinkage=cfg.shrinkage)
    directory.mkdir(parents=True)
    write_csv(coordinates, directory / f"{NAME}.csv")
    pictures = [directory / f"{NAME}.svg", directory / f"{NAME}.png"]
    draw(coordinates, fits, pictures, title=_title(cfg, invocation))
    passes = all(fit.passes for fit in fits)
    if invocation.json:
        rows = [asdict(fit) | {"passes": fit.passes} for fit in fits]
        print(json.dumps({"passes": passes, "out": str(directory), "slopes": rows}))
    else:
        slopes_table(fits, steps=cfg.steps).show()
        print(
            f"{VERDICTS[passes]}: a size or a change may grow at most as width^{cfg.growth:g}, and a change may shrink"
            f" at most as width^-{cfg.shrinkage:g}"
        )
        print(f"learning rate {cfg.optimizer.lr:g}: {origin_of_rate(cfg)}")
        print(directory)
    return 0 if passes else 1


def slopes_table(fits: Sequence[Slope], *, steps: int) -> Table:
    """The slopes of size and change, a row for each kind."""
    columns = [Column(name="mean absolute")]
    for label in LABELS.values():
        columns += [Column(name=label, right=True), Column(name="", styles={"FAIL": "bold red"})]
    by_kind = {(fit.kind, fit.figure): fit for fit in fits}
    rows = []
    for kind in dict.fromkeys(fit.kind for fit in fits):
        cells = [kind]
        for figure in (SIZE, CHANGE):
            fit = by_kind[kind, figure]
            cells += [f"{fit.slope:+.2f} ± {fit.error:.2f}", VERDICTS[fit.passes]]
        rows.append(cells)
    return Table(title=f"powers of the width after {steps} steps", columns=columns, rows=rows)


def _new_directory(out: str | None) -> Path:
    """The directory for the results; it is created only when there are results to write.

    Raises:
        UserError: it exists already.
    """
    path = auto_path(NAME) if out is None else Path(out)
    if path.exists():
        raise UserError("the directory exists already", key="out", value=out, hint="choose a different directory")
    return path


def _title(cfg: DictConfig, invocation: Invocation) -> str:
    groups = ("parametrization", "optimizer", "attn", "ffn", "moe")
    choices = " ".join(f"{group}={invocation.choices[group]}" for group in groups)
    return f"{choices} optimizer.lr={cfg.optimizer.lr:g}"
