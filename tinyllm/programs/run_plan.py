"""What a configuration asks for, checked and worked out before anything is written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tinyllm.config.allowed import Option
from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.data.prepare import TokenData
from tinyllm.data.sampler import Sampler
from tinyllm.errors import UserError
from tinyllm.inference.generator import prompt_ids
from tinyllm.inference.sampling import Sampling
from tinyllm.optim.schedules import Schedule
from tinyllm.programs.builders import (
    PLACEHOLDER_VOCAB,
    build_model,
    build_optimizer,
    build_schedule,
    open_corpus,
    open_data,
    optimizer_bytes,
    plain,
)
from tinyllm.programs.load_model import check_multipliers
from tinyllm.programs.resume import PROVEN, Resumption, reconcile
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.directory import LONGEST_NAME, auto_path, check_new
from tinyllm.runs.layout import CHECKPOINTS, TOKENIZER
from tinyllm.runs.lineage import later_than
from tinyllm.runs.state_schema import read_checked
from tinyllm.tokenizers import Tokenizer
from tinyllm.training.batch_plan import Batch, Horizon, Standing, check_horizon, plan_batch, plan_horizon, regroup
from tinyllm.training.callbacks import Callback
from tinyllm.training.compilation import check_backend
from tinyllm.training.curriculum import Curriculum, Lengths
from tinyllm.training.memory_estimate import trained_bytes
from tinyllm.utils.device import device_memory, pick_device, pick_precision
from tinyllm.utils.files import in_home
from tinyllm.utils.seeds import stream
from tinyllm.utils.text import quantity, short

HORIZON = ("max_steps", "max_tokens", "max_epochs")
BATCH = ("batch_size", "grad_accum_steps", "total_batch_tokens", "seq_len")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is known once the data is open, and nothing is written yet."""

    cfg: DictConfig
    invocation: Invocation
    resumption: Resumption | None
    strategy: Any
    logger: Callback
    device: torch.device
    precision: str
    pin_memory: bool
    source: checkpoints.Checkpoint | None
    """What ``init_from`` names."""
    batch: Batch
    data: TokenData
    sampler: Sampler
    horizon: Horizon
    lengths: Lengths
    schedule: Schedule
    path: Path
    is_new: bool
    notes: list[str]

    @property
    def max_steps(self) -> int:
        """The step at which the run is complete."""
        return self.horizon.max_steps

    def lr(self, step: int) -> float:
        """The scheduled learning rate of a step (from 0)."""
        return self.schedule(step - self.horizon.shift)

    @property
    def start_step(self) -> int:
        """Steps that are done already."""
        return self.resumption.checkpoint.step if self.resumption else 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do: no step, and no evaluation of the last one that a signal broke off."""
        if self.resumption is None or self.start_step < self.max_steps:
            return False
        return read_checked(self.resumption.checkpoint).get("owed") is None


def plan(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> RunPlan:
    """Check what the configuration asks for, open its data, and do the arithmetic.

    Raises:
        UserError: something does not fit.
    """
    allow = invocation.allow
    notes: list[str] = []
    if resumption:
        notes += resumption.notes
        notes += reconcile(cfg, resumption.checkpoint, named=resumption.named, allow=allow)
    if "resume" in invocation.typed and cfg.resume is not None and not cfg.checkpoint.enabled:
        hint = "a run that saves nothing cannot go on where it was; leave one of the two out"
        raise UserError("nothing to resume from later", key="checkpoint.enabled", value=False, hint=hint)
    strategy = build(cfg.strategy, path="strategy", allow=allow)
    logger = build(cfg.logger, path="logger", allow=allow) if cfg.logger and strategy.rank == 0 else Callback()
    device = strategy.device(pick_device(cfg.trainer.device))
    named = sorted(key for key in invocation.typed if key.startswith("distributed."))
    if named and strategy.world_size == 1:
        hint = "it is about several ranks, and there is one; leave it out"
        raise UserError("the key has no effect here", key=named[0], value=OmegaConf.select(cfg, named[0]), hint=hint)
    if resumption:
        notes += _regroup(cfg, resumption, strategy.world_size)
    asked = {name: cfg.trainer[name] for name in BATCH}
    batch = plan_batch(**asked, max_seq_len=cfg.model.max_seq_len, world_size=strategy.world_size)
    horizon = {name: cfg.trainer[name] for name in HORIZON}
    check_horizon(**horizon)
    curriculum = Curriculum(**plain(cfg.curriculum), seq_len=batch.seq_len)
    count_steps = partial(plan_horizon, batch, **horizon, curriculum=curriculum)
    if resumption and horizon["max_steps"] is None:
        count_steps = partial(count_steps, standing=_standing(resumption.checkpoint))
    sketch = partial(build_model, cfg, seed=0, device=torch.device("meta"), allow=allow)
    check_memory = partial(_check_memory, cfg, strategy=strategy, device=device, allow=allow)
    rough = sketch(vocab_size=cfg.model.vocab_size or PLACEHOLDER_VOCAB)
    strategy.check(build_optimizer(cfg, rough, allow=allow)[0])
    check_memory(rough)
    if cfg.trainer.max_epochs is None:  # else the horizon is known only with the data
        build_schedule(cfg, n_steps=count_steps(epoch_tokens=0).steps, allow=allow)
    pin_memory = _pinned(cfg, device)
    if cfg.trainer.compile.enabled:
        check_backend(cfg.trainer.compile.backend)
    source = None
    if cfg.init_from is not None and not resumption:
        source = checkpoints.find(cfg.init_from, tell=notes.append, key="init_from")
    with _told_whose(resumption):
        corpus, tokenizer_trainer = open_corpus(cfg, allow=allow)
    path, is_new = _place(cfg, invocation, resumption)
    notes += _abandoned(resumption, path) if resumption else []
    if is_new and strategy.rank == 0:
        check_new(path)
    with _told_whose(resumption):
        trained_on = resumption.checkpoint.manifest["data"] if resumption else None
        data = open_data(corpus, tokenizer_trainer, trained_on=trained_on)
    check_sampling(cfg, data.tokenizer)
    model = sketch(vocab_size=data.tokenizer.vocab_size)
    check_memory(model)
    if source is not None:
        _check_source(source, data, model, cfg=cfg, allow=allow)
    sampler = Sampler(data.train, seq_len=batch.seq_len, seed=stream(cfg.seed, "data"))
    end = count_steps(epoch_tokens=sampler.windows_per_epoch * batch.seq_len)
    schedule = build_schedule(cfg, n_steps=end.steps, allow=allow)
    precision = pick_precision(cfg.trainer.precision, device)
    if resumption:
        _check_same_data(resumption, data)
        was = resumption.checkpoint.manifest
        if cfg.trainer.precision == "auto":
            precision = was["precision"]
        if was["max_steps"] != end.max_steps:
            step, shift = resumption.checkpoint.step, was.get("shift", 0)
            shift = shift if type(shift) is int and shift < was["max_steps"] else 0  # whoever wrote it
            old = build_schedule(cfg, n_steps=was["max_steps"] - shift, allow=allow)
            notes.append(
                f"horizon {was['max_steps']} → {end.max_steps} steps: the learning rate of step {step + 1} is"
                f" {schedule(step - end.shift):.4g} (was {old(step - shift):.4g})"
            )
            now = curriculum.lengths(end.steps, shift=end.shift).at(step)
            before = curriculum.lengths(was["max_steps"] - shift, shift=shift).at(step)
            if now != before:
                notes.append(f"its sequences have {now} tokens instead of {before}: curriculum.steps is half of it")
    return RunPlan(
        cfg=cfg,
        invocation=invocation,
        resumption=resumption,
        strategy=strategy,
        logger=logger,
        device=device,
        precision=precision,
        pin_memory=pin_memory,
        source=source,
        batch=batch,
        data=data,
        sampler=sampler,
        horizon=end,
        lengths=curriculum.lengths(end.steps, shift=end.shift),
        schedule=schedule,
        path=path,
        is_new=is_new,
        notes=notes + list(data.notes),
    )


def _standing(checkpoint: checkpoints.Checkpoint) -> Standing:
    state = read_checked(checkpoint)
    return Standing(step=state["step"], tokens=state["tokens"], sequences=state["sequences"])


@contextmanager
def _told_whose(resumption: Resumption | None) -> Iterator[None]:
    """Say of data that a resumed run does not find that the setting is its own, and how to say where they are now."""
    try:
        yield
    except UserError as error:
        if resumption is None or error.key not in PROVEN or error.key in resumption.named:
            raise
        where = f"this is the run's own setting, and a relative path counts from the current directory; {error.key}=…"
        hint = f"{error.hint}; {where} says where the same data are now" if error.hint else where
        raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error


def _abandoned(resumption: Resumption, path: Path) -> list[str]:
    """What a run loses that goes back to an older checkpoint, as a sentence."""
    directory, step = resumption.checkpoint.path.parent, resumption.checkpoint.step
    later = later_than(directory, step)
    if not later or path.absolute() != resumption.checkpoint.run_dir.absolute():
        return []
    return [f"back to step {step}: the records of later steps go now, {', '.join(later)} with the next checkpoint"]


def check_sampling(cfg: DictConfig, tokenizer: Tokenizer) -> None:
    """Refuse settings of the samples during training that would fail at the first of them.

    Raises:
        UserError: a setting out of range, or a prompt that the tokenizer cannot express.
    """
    prompt_ids(tokenizer, cfg.trainer.sample_prompt, key="trainer.sample_prompt")
    try:
        Sampling(**plain(cfg.trainer.sample))
    except UserError as error:
        raise UserError(error.what, key=f"trainer.sample.{error.key}", value=error.value, hint=error.hint) from error


def _check_memory(
    cfg: DictConfig, model: Any, *, strategy: Any, device: torch.device, allow: frozenset[Option]
) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone are more than all memory there is.

    Raises:
        UserError: they are.
    """
    counts = model.parameter_counts()
    kept = optimizer_bytes(cfg, model, allow=allow)
    ranks = strategy.world_size if strategy.is_sharded else 1
    needed = trained_bytes(counts.total, kept, averaged=cfg.ema.enabled, ranks=ranks)
    there = device_memory(device)
    if there is None or needed <= there:
        return
    hint = f"weights, gradients and optimizer state need {quantity(needed, 'B')}, {quantity(there, 'B')} are there"
    if 2 * counts.embedding > counts.total:
        hint += (
            f"; most of it is for {model.vocab_size:,} vocabulary entries (the largest id is {model.vocab_size - 1})"
        )
    where = f"{short(counts.total)} parameters, model.d_model={cfg.model.d_model}, model.n_layers={cfg.model.n_layers}"
    raise UserError("the model does not fit into memory", file=where, hint=hint)


def _regroup(cfg: DictConfig, resumption: Resumption, world_size: int) -> list[str]:
    """Keep the run's batch on another number of ranks, unless this command line asks for another batch.

    Raises:
        UserError: its sequences cannot be dealt out to so many.
    """
    was = resumption.checkpoint.manifest.get("world_size", 1)
    if was == world_size or any(f"trainer.{name}" in resumption.named for name in BATCH):
        return []
    seq_len = cfg.trainer.seq_len or cfg.model.max_seq_len
    asked = {name: cfg.trainer[name] for name in BATCH}
    before = plan_batch(**asked | {"seq_len": seq_len}, max_seq_len=cfg.model.max_seq_len, world_size=was)
    size, steps = regroup(before, world_size)
    cfg.trainer.batch_size, cfg.trainer.grad_accum_steps, cfg.trainer.total_batch_tokens = size, steps, None
    notes = [f"{world_size} rank(s) instead of {was}: {size} sequences each in {steps} micro-step(s), the same batch"]
    if cfg.model.dropout or cfg.model.attn_dropout or cfg.model.layerdrop:
        notes.append("dropout draws from other streams than with the other number of ranks")
    return notes


def _place(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> tuple[Path, bool]:
    """The run directory, and whether it must not exist yet."""
    if resumption and ("run.dir" not in resumption.named or cfg.resume == "auto"):
        return resumption.checkpoint.run_dir, False
    if cfg.run.dir is not None:
        path = in_home(cfg.run.dir)
        goes_on = cfg.resume == "auto" and path.is_dir()
        if goes_on and checkpoints.steps_in(path / CHECKPOINTS):
            hint = f"they would be lost; continue with resume={path}, or choose another directory"
            raise UserError("the run directory has checkpoints", key="run.dir", value=path, hint=hint)
        return path, not goes_on
    choices = invocation.choices
    name = cfg.run.name or "_".join(choices.get(group, "") for group in ("model", "attn", "dataset"))
    path = auto_path(name)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        hint = f"at most {LONGEST_NAME - len(os.fsencode(path.name)) + len(os.fsencode(name))} bytes"
        raise UserError("too long for the name of a directory", key="run.name", value=f"{name[:40]}…", hint=hint)
    return path, True


def _check_same_data(resumption: Resumption, data: TokenData) -> None:
    """Refuse to continue on other tokens."""
    was = resumption.checkpoint.manifest
    now = data_facts(data)
    for what, key in (("train", "dataset"), ("val", "dataset"), ("tokenizer", "tokenizer")):
        if was["data"][what] != now[what]:
            raise UserError(
                f"the {what} data is not what the run was trained on",
                key=key,
                value=now[what][:12],
                hint=f"the checkpoint has {was['data'][what][:12]}; bring the old data back"
                + " (links to folders were not followed when the run was made)" * ("rules" not in was["data"])
                + f", or use init_from={resumption.checkpoint.run_dir}",
            )


def data_facts(data: TokenData) -> dict[str, str]:
    """Fingerprints of the tokens and of the tokenizer."""
    return {
        "train": data.train.fingerprint,
        "val": data.val.fingerprint,
        "tokenizer": data.tokenizer.fingerprint(),
    }


def _check_source(
    source: checkpoints.Checkpoint, data: TokenData, model: nn.Module, *, cfg: DictConfig, allow: frozenset[Option]
) -> None:
    """Refuse weights that cannot start this model: another tokenizer, architecture or parametrization."""
    asked = cfg.init_from
    theirs, ours = source.manifest["data"]["tokenizer"], data.tokenizer.fingerprint()
    if theirs != ours:
        file = source.path / TOKENIZER
        raise UserError(
            "the tokenizer is not that of the other run",
            key="init_from",
            value=asked,
            hint=f"theirs is {theirs[:12]}, ours {ours[:12]}; use tokenizer=pretrained tokenizer.path={file}",
        )
    checkpoints.check_fits(source, model)
    check_multipliers(source, model, cfg=cfg, vocab_size=data.tokenizer.vocab_size, allow=allow)


def _pinned(cfg: DictConfig, device: torch.device) -> bool:
    """Whether batches are page-locked; auto: for a GPU."""
    asked = cfg.dataloader.pin_memory
    if asked is True and device.type != "cuda":
        hint = "false or auto; page-locked memory serves copies to a GPU only"
        raise UserError("nothing to copy to", key="dataloader.pin_memory", value=asked, hint=hint)
    return device.type == "cuda" if asked == "auto" else bool(asked)
