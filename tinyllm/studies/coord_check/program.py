"""``python -m tinyllm.coord_check optimizer=muon``: do activations keep their size at every width?"""

from typing import TYPE_CHECKING, Any

from tinyllm.utils.nested import is_within

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation
    from tinyllm.data.batch import Batch
    from tinyllm.studies.coord_check.coordinates import Slope

OWN = ("widths", "more_heads", "steps", "seeds", "growth", "shrinkage", "out")
PARTS = ("attn", "ffn", "moe", "pos", "norm", "layers", "parametrization", "optimizer", "dataset", "tokenizer")
TRAINER = ("batch_size", "seq_len", "grad_clip", "device")
READ = ("model", "seed", "debug", "experiment", "hydra", *OWN, *PARTS, *(f"trainer.{name}" for name in TRAINER))
"""What has an effect here; below these keys lie others."""
NAME = "coord_check"


def main() -> None:
    """Entry point of ``tinyllm-coord-check``."""
    from tinyllm.config.cli.main import run

    run("coord_check", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    import json
    from dataclasses import asdict

    from tinyllm.studies.coord_check.coordinates import check, slopes, write_csv
    from tinyllm.studies.report.coordinates import draw
    from tinyllm.utils.device import pick_device

    _check_keys(cfg, invocation)
    configurations = {width: _of_width(cfg, width) for width in cfg.widths}
    for own in configurations.values():
        _try_out(own, invocation)
    out = _place(cfg.out)
    device = pick_device(cfg.trainer.device)
    vocab_size, batches = _batches(cfg, invocation, device=device)

    def make(width: int, seed: int) -> "tuple[Any, torch.optim.Optimizer]":
        from tinyllm.programs.builders import build_model, build_optimizer

        own, allow = configurations[width], invocation.allow
        model = build_model(own, vocab_size=vocab_size, seed=seed, device=device, allow=allow)
        return model, build_optimizer(own, model, allow=allow)[0]

    def progress(width: int, seed: int) -> None:
        if not invocation.json:
            print(f"width {width}, seed {seed}", flush=True)

    found = check(
        make,
        batches[:-1],
        batches[-1].inputs,
        widths=cfg.widths,
        seeds=range(cfg.seed, cfg.seed + cfg.seeds),
        lr=cfg.optimizer.lr,
        grad_clip=cfg.trainer.grad_clip,
        progress=progress,
    )
    fits = slopes(found, growth=cfg.growth, shrinkage=cfg.shrinkage)
    out.mkdir(parents=True)
    write_csv(found, out / f"{NAME}.csv")
    draw(found, fits, [out / f"{NAME}.svg", out / f"{NAME}.png"], title=_title(cfg, invocation))
    passes = all(one.passes for one in fits)
    if invocation.json:
        rows = [asdict(one) | {"passes": one.passes} for one in fits]
        print(json.dumps({"passes": passes, "out": str(out), "slopes": rows}))
    else:
        _show(fits, passes, out, cfg)
    return 0 if passes else 1


def _check_keys(cfg: "DictConfig", invocation: "Invocation") -> None:
    from tinyllm.errors import UserError

    for key in sorted(invocation.typed):
        if not is_within(key, READ):
            hint = "a few steps at a constant learning rate, in one process, of which no run is kept; leave it out"
            raise UserError("the key has no effect here", file=key, hint=hint)
    widths = list(cfg.widths)
    if len(set(widths)) < max(2, len(widths)) or min(widths, default=0) < 1:
        hint = "at least two different ones, each at least 1"
        raise UserError("no widths to compare", key="widths", value=widths, hint=hint)


def _of_width(cfg: "DictConfig", width: int) -> "DictConfig":
    """The configuration of the same composition at another width.

    Raises:
        UserError: the number of heads that belongs to it is no whole one.
    """
    from copy import deepcopy

    from tinyllm.errors import UserError

    own, ratio = deepcopy(cfg), width / cfg.model.d_model
    own.model.d_model = width
    own.model.d_ff = max(1, round(cfg.model.d_ff * ratio))
    if not cfg.more_heads:
        return own
    for name in ("n_heads", "n_kv_heads"):
        if (cfg.model[name] * width) % cfg.model.d_model:
            hint = f"model.{name}={cfg.model[name]} at model.d_model={cfg.model.d_model} is no whole number there"
            raise UserError("heads do not go into the width", key="widths", value=width, hint=hint)
        own.model[name] = cfg.model[name] * width // cfg.model.d_model
    base = own.model.parametrization
    if base.get("base_heads", 1) is None:
        base.base_heads = max(1, round(cfg.model.n_heads * base.base_width / cfg.model.d_model))
    return own


def _place(out: str | None) -> "Path":
    """The directory for what is found; it is made when there is something.

    Raises:
        UserError: it exists already.
    """
    from pathlib import Path

    from tinyllm.errors import UserError
    from tinyllm.runs.directory import auto_path

    path = auto_path(NAME) if out is None else Path(out)
    if path.exists():
        raise UserError("it exists already", key="out", value=out, hint="choose another directory")
    return path


def _batches(cfg: "DictConfig", invocation: "Invocation", *, device: "torch.device") -> "tuple[int, list[Batch]]":
    """The tokenizer's vocabulary, and batches from the beginning of the training split: one for each step and one more.

    Raises:
        UserError: the data are too few.
    """
    from itertools import islice

    from tinyllm.data.loader import eval_batches
    from tinyllm.errors import UserError
    from tinyllm.programs.builders import open_corpus, open_data
    from tinyllm.training.batch_plan import plan_batch

    trainer = cfg.trainer
    shape = plan_batch(
        batch_size=trainer.batch_size,
        grad_accum_steps=None,
        total_batch_tokens=None,
        seq_len=trainer.seq_len,
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    data = open_data(*open_corpus(cfg, allow=invocation.allow), lines=not invocation.json)
    stream = eval_batches(data.train, seq_len=shape.seq_len, batch_size=shape.batch_size)
    batches = [batch.to(device) for batch in islice(stream, cfg.steps + 1)]
    if len(batches) <= cfg.steps or batches[-1].sequences < shape.batch_size:
        needed = (cfg.steps + 1) * shape.batch_size * shape.seq_len
        raise UserError(
            "too few tokens", key="steps", value=cfg.steps, hint=f"the training split has less than {needed}"
        )
    return data.tokenizer.vocab_size, batches


def _try_out(cfg: "DictConfig", invocation: "Invocation") -> None:
    """Find out before the data is opened whether all sizes go together.

    Raises:
        UserError: they do not.
    """
    import torch

    from tinyllm.programs.builders import PLACEHOLDER_VOCAB, build_model, build_optimizer

    vocab_size, meta = cfg.model.vocab_size or PLACEHOLDER_VOCAB, torch.device("meta")
    model = build_model(cfg, vocab_size=vocab_size, seed=0, device=meta, allow=invocation.allow)
    build_optimizer(cfg, model, allow=invocation.allow)


def _title(cfg: "DictConfig", invocation: "Invocation") -> str:
    groups = ("parametrization", "optimizer", "attn", "ffn", "moe")
    return " ".join(
        [*(f"{group}={invocation.choices[group]}" for group in groups), f"optimizer.lr={cfg.optimizer.lr:g}"]
    )


def _show(fits: "Sequence[Slope]", passes: bool, out: "Path", cfg: "DictConfig") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"powers of the width after {cfg.steps} steps", title_justify="left")
    table.add_column("mean absolute", no_wrap=True)
    for heading in ("size", "", "change since the start", ""):
        table.add_column(heading, justify="right" if heading else "left")
    kinds = dict.fromkeys(one.kind for one in fits)
    for kind in kinds:
        cells = []
        for one in fits:
            if one.kind == kind:
                cells += [f"{one.slope:+.2f} ± {one.error:.2f}", "pass" if one.passes else "FAIL"]
        table.add_row(kind, *cells)
    console = Console()
    console.print(table)
    allowed = (
        f"a size or a change may grow with at most width^{cfg.growth:g}, a change shrink with width^-{cfg.shrinkage:g}"
    )
    console.print(f"{'pass' if passes else 'FAIL'}: {allowed}", soft_wrap=True)
    console.print(f"{out}", soft_wrap=True)
