"""The plan of a run, made in three steps: check the settings, open the data, do the arithmetic.

Anything that cannot work is refused here, before the run directory is written to. Problems visible from the settings
alone are refused even before the data is opened, since opening it may take minutes the first time.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.data.batch import PROMPTS, WindowSource
from tinyllm.data.documents import check_documents
from tinyllm.data.prompt_data import prompt_data
from tinyllm.data.run_data import RunData, packing_notes, train_sources
from tinyllm.data.sample_span import SampleSpan
from tinyllm.errors import UserError
from tinyllm.optim.schedules import Schedule
from tinyllm.programs.background_preparation import prepare_in_background
from tinyllm.programs.builders import (
    HORIZON,
    META,
    PLACEHOLDER_VOCAB,
    build_model,
    build_objective,
    build_optimizer,
    build_schedule,
    fit_vocabulary,
    open_corpus,
    open_data,
    plain,
    planned_batch,
)
from tinyllm.programs.conversations import check_conversations
from tinyllm.programs.data_checks import check_start_early
from tinyllm.programs.initial_weights import fitted, initial_weights, reference_weights
from tinyllm.programs.prompt_checks import check_prompts, check_same_rewards
from tinyllm.programs.resume import (
    Resumption,
    abandoned_steps,
    check_resumable,
    check_same_data,
    keep_batch,
    naming_saved_setting,
    progress_of,
    reconcile,
    was_killed_at_its_end,
)
from tinyllm.programs.run_checks import (
    check_lengths,
    check_max_tokens,
    check_memory,
    check_objective,
    check_sampling,
    check_several_ranks,
    tokenizer_for,
)
from tinyllm.programs.saved_weights import WeightSource
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.directory import LONGEST_NAME, auto_path, check_new
from tinyllm.runs.layout import CHECKPOINTS
from tinyllm.runs.state_schema import read_checked
from tinyllm.training.batch_plan import BatchPlan, Horizon, RunProgress, check_horizon, plan_horizon
from tinyllm.training.callbacks import Callback
from tinyllm.training.compilation import check_backend
from tinyllm.training.curriculum import Curriculum, Lengths
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.device import pick_device, pick_precision
from tinyllm.utils.files import expand_home
from tinyllm.utils.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """Step 1: what the settings alone determine."""

    cfg: DictConfig
    invocation: Invocation
    resumption: Resumption | None
    strategy: Any
    logger: Callback
    device: torch.device
    precision: str
    pin_memory: bool
    init_from: WeightSource | None
    """The weights of ``init_from``; of a resumed run with adapters, the weights that these are added to."""
    reference: WeightSource | None
    """The weights that the objective compares the model with in every step."""
    batch: BatchPlan
    curriculum: Curriculum
    progress: RunProgress | None
    """Progress of a resumed run whose horizon is in tokens or epochs."""
    meta_model: Any
    """The model on ``meta``, without memory: parameters, FLOPs, memory and optimizer groups are counted on it.

    Its vocabulary is a placeholder until the tokenizer is known; :func:`open_run_data` resizes it.
    """
    meta_objective: Objective
    """The objective on that model: what it needs and reads."""
    corpus: Any
    tokenizer_trainer: Any
    path: Path
    is_new: bool
    """The run directory must not exist yet."""
    notes: list[str]

    @property
    def start_step(self) -> int:
        """Optimizer steps taken before this start."""
        return self.resumption.checkpoint.step if self.resumption else 0


@dataclass(frozen=True, kw_only=True)
class RunPlan(CheckedSettings):
    """Everything that is known about a run before anything is written."""

    data: RunData
    sampler: WindowSource
    span: SampleSpan
    horizon: Horizon
    lengths: Lengths
    schedule: Schedule

    @property
    def max_steps(self) -> int:
        """The step at which the run is complete."""
        return self.horizon.max_steps

    def lr_at(self, step: int) -> float:
        """The scheduled learning rate of a step (from 0)."""
        return self.schedule(step - self.horizon.shift)

    @property
    def is_complete(self) -> bool:
        """All steps are done, no interrupted evaluation is pending, and the result was recorded."""
        if self.resumption is None or self.start_step < self.max_steps:
            return False
        if read_checked(self.resumption.checkpoint).get("owed") is not None:
            return False
        is_evaluated = bool(self.cfg.trainer.eval_every)
        return not was_killed_at_its_end(self.path, step=self.start_step, is_evaluated=is_evaluated)


def make_plan(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> RunPlan:
    """Plan the run that a configuration describes.

    Raises:
        UserError: something does not fit together.
    """
    settings = check_settings(cfg, invocation, resumption)
    data = open_run_data(settings)
    if settings.init_from is not None and not resumption:
        weights, notes = fitted(settings.init_from, settings.meta_model, data, cfg=cfg, allow=invocation.allow)
        reference = weights if settings.reference is not None else None
        settings = replace(settings, init_from=weights, reference=reference, notes=settings.notes + notes)
    return plan_training(settings, data)


def check_settings(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> CheckedSettings:
    """Step 1: build what needs no data, and refuse what can be refused without any.

    Raises:
        UserError: something does not fit together.
    """
    allow = invocation.allow
    notes: list[str] = []
    if resumption:
        notes += resumption.notes
        notes += reconcile(cfg, resumption.checkpoint, named=resumption.named, allow=allow)
    check_resumable(cfg, invocation)
    strategy = build(cfg.strategy, path="strategy", allow=allow)
    # Built now, because a logger refuses settings out of range and a missing library in its constructor.
    logger = build(cfg.logger, path="logger", allow=allow) if cfg.logger and strategy.rank == 0 else Callback()
    device = strategy.device(pick_device(cfg.trainer.device))
    check_several_ranks(cfg, invocation, world_size=strategy.world_size)
    if resumption:
        notes += keep_batch(cfg, resumption, strategy.world_size)
    batch = planned_batch(cfg, world_size=strategy.world_size)
    check_horizon(**{name: cfg.trainer[name] for name in HORIZON})
    curriculum = Curriculum(**plain(cfg.curriculum), seq_len=batch.seq_len)
    # Built before the data is opened: sizes that do not fit together are refused by the constructors of its parts.
    vocab_size = cfg.model.vocab_size or PLACEHOLDER_VOCAB
    meta_model = build_model(cfg, vocab_size=vocab_size, seed=0, device=META, allow=allow)
    meta_objective = build_objective(cfg, meta_model, allow=allow)
    strategy.check_optimizer(build_optimizer(cfg, meta_model, allow=allow)[0])
    check_memory(cfg, meta_objective, strategy=strategy, device=device, allow=allow)
    progress = progress_of(resumption.checkpoint) if resumption and cfg.trainer.max_steps is None else None
    n_steps = None
    if cfg.trainer.max_epochs is None:  # a horizon in epochs is known only with the data
        n_steps = horizon_of(cfg, batch, curriculum, progress, epoch_tokens=0).steps
        build_schedule(cfg, n_steps=n_steps, allow=allow)
    pin_memory = pins_memory(cfg, device)
    if cfg.trainer.compile.enabled:
        check_backend(cfg.trainer.compile.backend)
    init_from = initial_weights(cfg, resumption, tell=notes.append, allow=allow)
    reference = reference_weights(cfg, meta_objective, init_from, resumption, allow=allow)
    with naming_saved_setting(resumption):
        corpus, tokenizer_trainer = open_corpus(cfg, allow=allow)
    check_objective(cfg, meta_objective, corpus, invocation)
    if resumption:
        check_same_rewards(cfg, resumption.checkpoint, allow=allow)
    check_conversations(cfg, corpus, init_from)
    if n_steps is not None and not resumption:
        corpus.check_length(n_steps)
    check_max_tokens(cfg, seq_len=batch.seq_len)
    check_start_early(cfg, seq_len=batch.seq_len)
    path, is_new = resolve_run_dir(cfg, invocation, resumption)
    if resumption:
        notes += abandoned_steps(resumption, path)
    if is_new and strategy.rank == 0:  # on another rank it may exist already, created by rank 0
        check_new(path)
    precision = pick_precision(cfg.trainer.precision, device)
    if resumption and cfg.trainer.precision == "auto":  # a different machine must not change the run's precision
        precision = resumption.checkpoint.manifest["precision"]
    return CheckedSettings(
        cfg=cfg,
        invocation=invocation,
        resumption=resumption,
        strategy=strategy,
        logger=logger,
        device=device,
        precision=precision,
        pin_memory=pin_memory,
        init_from=init_from,
        reference=reference,
        batch=batch,
        curriculum=curriculum,
        progress=progress,
        meta_model=meta_model,
        meta_objective=meta_objective,
        corpus=corpus,
        tokenizer_trainer=tokenizer_trainer,
        path=path,
        is_new=is_new,
        notes=notes,
    )


def open_run_data(settings: CheckedSettings) -> RunData:
    """Step 2: open the token cache, preparing the data if necessary, and refuse what does not fit the tokenizer.

    Raises:
        UserError: the data cannot be opened, is not what a resumed run was trained on, or does not fit the model.
    """
    cfg, resumption = settings.cfg, settings.resumption
    trained_on = resumption.checkpoint.manifest["data"] if resumption else None
    weights = resumption.checkpoint if resumption else settings.init_from
    trainer = tokenizer_for(settings.meta_objective.reads, settings.tokenizer_trainer, weights, settings.invocation)
    with naming_saved_setting(resumption):
        early = partial(prepare_in_background, cfg, allow=settings.invocation.allow)
        opened = partial(open_data, trained_on=trained_on, early=early, scores=settings.meta_objective.scores_answers)
        settings.corpus.pin((trained_on or {}).get("revision"))
        data: RunData = (prompt_data if settings.meta_objective.reads == PROMPTS else opened)(settings.corpus, trainer)
    check_prompts(cfg, data, settings.meta_objective, allow=settings.invocation.allow)
    check_sampling(cfg, data.tokenizer)
    fit_vocabulary(cfg, settings.meta_model, vocab_size=data.tokenizer.vocab_size)
    check_memory(
        cfg,
        settings.meta_objective,
        strategy=settings.strategy,
        device=settings.device,
        allow=settings.invocation.allow,
    )
    if resumption:
        check_same_data(resumption, data)
    if settings.meta_model.document_mask:
        check_documents(*data.splits("train").values(), key="model.document_mask", value=True)
    return data


def plan_training(settings: CheckedSettings, data: RunData) -> RunPlan:
    """Step 3: the arithmetic of samples, steps, sequence lengths and learning rates.

    Raises:
        UserError: the horizon is shorter than a step, or the schedule does not fit in it.
    """
    cfg, batch, curriculum = settings.cfg, settings.batch, settings.curriculum
    sources = train_sources(data, seq_len=batch.seq_len, seed=derive_seed(cfg.seed, "data"))
    check_lengths(data, seq_len=batch.seq_len)
    epoch_tokens = sum(source.windows_per_epoch for source in sources.values()) * batch.seq_len
    horizon = horizon_of(cfg, batch, curriculum, settings.progress, epoch_tokens=epoch_tokens)
    if not settings.resumption:
        settings.corpus.check_length(horizon.steps)
    schedule = build_schedule(cfg, n_steps=horizon.steps, allow=settings.invocation.allow)
    lengths = curriculum.lengths(horizon.steps, shift=horizon.shift)
    moved = horizon_change_notes(settings, horizon, schedule, lengths) if settings.resumption else []
    span = sample_span(settings, horizon)
    notes = [*settings.notes, *moved, *data.notes, *data.order_notes(sources, span), *packing_notes(sources)]
    return RunPlan(
        **vars(settings) | {"notes": notes},
        data=data,
        sampler=data.order(sources, span),
        span=span,
        horizon=horizon,
        lengths=lengths,
        schedule=schedule,
    )


def sample_span(settings: CheckedSettings, horizon: Horizon) -> SampleSpan:
    """The samples that the planned run reads, those before this start included."""
    per_step = settings.batch.sequences
    if settings.resumption is None:
        return SampleSpan(total=horizon.max_steps * per_step, per_step=per_step)
    checkpoint = settings.resumption.checkpoint
    done = progress_of(checkpoint)
    return SampleSpan(
        total=done.sequences + (horizon.max_steps - done.step) * per_step,
        per_step=per_step,
        step=done.step,
        sample=done.sequences,
        changes=tuple(checkpoint.manifest.get("changes", ())),
    )


def horizon_of(
    cfg: DictConfig, batch: BatchPlan, curriculum: Curriculum, progress: RunProgress | None, *, epoch_tokens: int
) -> Horizon:
    """The end of the run that ``trainer.max_*`` asks for; see :func:`plan_horizon`."""
    horizon = {name: cfg.trainer[name] for name in HORIZON}
    return plan_horizon(batch, **horizon, curriculum=curriculum, progress=progress, epoch_tokens=epoch_tokens)


def horizon_change_notes(
    settings: CheckedSettings, horizon: Horizon, schedule: Schedule, lengths: Lengths
) -> list[str]:
    """Notes on what changes at the next step when a resumed run has a different horizon than before."""
    assert settings.resumption is not None
    checkpoint = settings.resumption.checkpoint
    old_steps, step = checkpoint.manifest["max_steps"], checkpoint.step
    if old_steps == horizon.max_steps:
        return []
    shift = checkpoint.manifest.get("shift", 0)
    if type(shift) is not int or shift >= old_steps:  # the manifest may be untrusted
        shift = 0
    old_schedule = build_schedule(settings.cfg, n_steps=old_steps - shift, allow=settings.invocation.allow)
    notes = [
        f"horizon {old_steps} → {horizon.max_steps} steps: the learning rate of step {step + 1} is"
        f" {schedule(step - horizon.shift):.4g} (was {old_schedule(step - shift):.4g})"
    ]
    length, old_length = lengths.at(step), settings.curriculum.lengths(old_steps - shift, shift=shift).at(step)
    if length != old_length:
        reason = "curriculum.steps is half the horizon by default"
        notes.append(f"its sequences have {length} tokens instead of {old_length}: {reason}")
    return notes


def pins_memory(cfg: DictConfig, device: torch.device) -> bool:
    """Whether batches are copied from pinned (page-locked) memory; ``auto``: on a GPU.

    Raises:
        UserError: ``dataloader.pin_memory=true`` without a GPU.
    """
    pin_memory = cfg.dataloader.pin_memory
    if pin_memory is True and device.type != "cuda":
        hint = "it only speeds up copies to a GPU; use false or auto"
        raise UserError("pinned memory needs a GPU", key="dataloader.pin_memory", value=pin_memory, hint=hint)
    return device.type == "cuda" if pin_memory == "auto" else bool(pin_memory)


def resolve_run_dir(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> tuple[Path, bool]:
    """The run directory, and whether it must not exist yet.

    Raises:
        UserError: the directory holds checkpoints of a different run, or its name would be too long.
    """
    if resumption and ("run.dir" not in resumption.named or cfg.resume == "auto"):
        return resumption.checkpoint.run_dir, False
    if cfg.run.dir is not None:
        path = expand_home(cfg.run.dir)
        continues = cfg.resume == "auto" and path.is_dir()
        if continues and checkpoints.steps_in(path / CHECKPOINTS):
            hint = f"they would be lost; continue with resume={path}, or choose a different directory"
            raise UserError("the run directory already contains checkpoints", key="run.dir", value=path, hint=hint)
        return path, not continues
    name = cfg.run.name or "_".join(invocation.choices.get(group, "") for group in ("model", "attn", "dataset"))
    path = auto_path(name)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        hint = f"at most {LONGEST_NAME - len(os.fsencode(path.name)) + len(os.fsencode(name))} bytes"
        raise UserError("directory name too long", key="run.name", value=f"{name[:40]}…", hint=hint)
    return path, True
