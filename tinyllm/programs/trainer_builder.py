"""Build the trainer of a planned run: training state, objective, compiler, checkpoints, loggers."""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.saved import literal_settings, settings_text
from tinyllm.config.targets import Option
from tinyllm.data.run_data import masks_targets
from tinyllm.data.shards import ShardedSampler
from tinyllm.loggers.console import console_for
from tinyllm.loggers.curves import Curves
from tinyllm.loggers.event_log import EventLog
from tinyllm.nn.train_kernels import use_train_kernels
from tinyllm.optim.ema import EMA, NoAverage
from tinyllm.programs.builders import build_model, build_objective, build_optimizer, plain
from tinyllm.programs.conversations import template_in
from tinyllm.programs.decoding_kernels import train_kernels_for
from tinyllm.programs.evaluator import Evaluator
from tinyllm.programs.initial_weights import initial_tensors
from tinyllm.programs.prompt_checks import REWARDS, build_rewards
from tinyllm.programs.reference import Reference
from tinyllm.programs.remaining_batches import remaining_batches
from tinyllm.programs.resume import to_save
from tinyllm.programs.rollouts import make_rollouts
from tinyllm.programs.run_plan import RunPlan
from tinyllm.programs.run_summary import run_info
from tinyllm.programs.saved_weights import ADAPTERS, REFERENCE
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs import layout as names
from tinyllm.runs.checkpoint_parts import STATE
from tinyllm.runs.checkpoint_writer import Saver
from tinyllm.runs.directory import RunDir
from tinyllm.runs.lineage import repair_hints
from tinyllm.runs.metrics_log import Log, MetricsLog, read_metrics
from tinyllm.runs.provenance import provenance
from tinyllm.runs.state_schema import read_checked
from tinyllm.training.callbacks import Callback, CallbackList, OptimizerGroup, RunInfo
from tinyllm.training.checkpointing import Checkpointing, NoCheckpoints
from tinyllm.training.compilation import Compiled, Eager, preserving_state
from tinyllm.training.data_arrival import AllData, ArrivingData
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.experience import as_read
from tinyllm.training.flops import training_flops
from tinyllm.training.objectives.base import Objective
from tinyllm.training.profiler import NoProfiler, Profiler
from tinyllm.training.state import TrainState, own_tensors
from tinyllm.training.trainer import Settings, Trainer
from tinyllm.utils.device import autocast, compute_dtype, peak_flops
from tinyllm.utils.seeds import seed_globals
from tinyllm.utils.stop_signal import StopRequest
from tinyllm.utils.tensors import first_not_finite


def make_trainer(plan: RunPlan, run_dir: RunDir, stop: StopRequest, stack: ExitStack) -> Trainer:
    """Build the trainer of a planned run; writes ``run.json`` and prints the start summary.

    Args:
        stack: closes log, checkpoint writer and compiler at the end of the run.
    """
    cfg, strategy = plan.cfg, plan.strategy
    state, groups, logger_states = make_state(plan)
    objective = build_objective(cfg, state.model, allow=plan.invocation.allow)
    if cfg.trainer.kernels and not cfg.trainer.compile.enabled:
        kernels = train_kernels_for(plan.device, plan.precision)
        for module in (objective, plan.meta_model):  # the latter knows then what to tell about attention and memory
            use_train_kernels(module, kernels)
    # Checkpoints may have been removed since the state was saved: if so, use the best one left.
    state.best_loss, state.best_step = strategy.on_rank_zero(partial(best_kept, run_dir, state, objective))
    forward = strategy.wrap(objective, find_unused=cfg.distributed.find_unused_parameters)
    compiler = make_compiler(plan, state.model, stop)
    stack.callback(compiler.close)
    peak = peak_flops(plan.device, plan.precision)
    peak = peak * strategy.world_size if peak else None
    info = run_info(plan, groups, peak, run_dir.path, tokens=state.tokens)
    files = write_run_files(plan, run_dir, info, state)
    # If a step's evaluation is still owed, its record lacks the result; the record is dropped here and rewritten,
    # complete.
    log, events = listeners(plan, run_dir, start_step=state.step - (state.owed is not None))
    events.load_state_dict(logger_states)
    stack.callback(log.close)
    trial = TrialPass(plan=plan, objective=objective)
    saver = make_saver(plan, run_dir, files)
    stack.callback(saver.close)
    checkpointing = NoCheckpoints()
    if cfg.checkpoint.enabled:
        checkpointing = Checkpointing(
            state=state,
            strategy=strategy,
            saver=saver,
            log=log,
            events=events,
            has_finite_gradients=trial.gives_finite_gradients,
            directory=run_dir.checkpoints,
        )
    rollouts = make_rollouts(plan, state, objective, compiler)
    evaluator = Evaluator(plan=plan, state=state, objective=objective, compiler=compiler, rollouts=rollouts)
    events.on_start(info)
    return Trainer(
        state=state,
        objective=objective,
        forward=compiler.calls(forward),
        lr_at=plan.lr_at,
        settings=loop_settings(cfg, plan.max_steps, samples=not objective.scores_answers),
        batch_plan=plan.batch,
        lengths=plan.lengths,
        autocast=partial(autocast, plan.device, plan.precision),
        batches=partial(remaining_batches, plan, state),
        evaluate=evaluator.evaluate,
        sample=evaluator.sample,
        checkpoints=checkpointing,
        log=log,
        events=events,
        stop=stop,
        data=ArrivingData(plan.sampler, strategy) if isinstance(plan.sampler, ShardedSampler) else AllData(),
        warm_up=partial(warm_up, compiler, trial, events, run_dir),
        profiler=make_profiler(plan, run_dir.path, report=events.on_message),
        peak_flops=peak,
        run_dir=run_dir.path,
        flops_per_token=training_flops(plan.meta_model, plan.sampler),
        before_first_step=Reference(plan=plan, state=state, objective=objective).read,
        reports_targets=masks_targets(plan.data),
        collect=as_read if rollouts is None else rollouts.collect,
    )


def make_state(plan: RunPlan) -> tuple[TrainState, list[OptimizerGroup], dict[str, Any]]:
    """The training state at the first step, or as the checkpoint to resume has it.

    The model exists twice: on ``meta`` in the plan, where only shapes are counted, and for real in this state.

    Returns:
        The state, the groups of its optimizer, and the saved states of the loggers.
    """
    cfg, strategy, allow = plan.cfg, plan.strategy, plan.invocation.allow
    # The model's weights do not use the global streams; this is for third-party parts that draw from them.
    seed_globals(cfg.seed, strategy.rank)
    model = build_model(
        cfg,
        vocab_size=plan.data.tokenizer.vocab_size,
        seed=cfg.seed,
        device=plan.device,
        allow=allow,
        place=strategy.placer(plan.device, compute_dtype(plan.precision)),
    )
    state, groups = new_state(cfg, model, strategy, device=plan.device, precision=plan.precision, allow=allow)
    own, placed = own_tensors(model), {"rows": strategy.rows, "local": strategy.local_tensor}
    if plan.init_from is not None:
        source = plan.init_from
        checkpoints.load_weights(source.open(), initial_tensors(model), file=source.path, **placed)
    if plan.resumption is None:
        return state, groups, {}
    checkpoint = plan.resumption.checkpoint
    checkpoints.load_weights(checkpoint.tensors(), own, file=checkpoint.path, **placed)
    saved = read_checked(checkpoint)
    state.load_state_dict(saved, file=checkpoint.path / STATE)
    return state, groups, saved.get("loggers", {})


def new_state(
    cfg: DictConfig, model: Any, strategy: Strategy, *, device: torch.device, precision: str, allow: frozenset[Option]
) -> tuple[TrainState, list[OptimizerGroup]]:
    """The training state of a new model, and the groups of its optimizer."""
    optimizer, groups = build_optimizer(cfg, model, allow=allow)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    ema = plain(cfg.ema)
    average = EMA(model, **ema) if ema.pop("enabled") else NoAverage()
    return TrainState(model=model, optimizer=optimizer, scaler=scaler, average=average, strategy=strategy), groups


def best_kept(run_dir: RunDir, state: TrainState, objective: Objective) -> tuple[float | None, int | None]:
    """Value and step of the best checkpoint that the run still has, as of the state's step."""
    return repair_hints(
        run_dir.checkpoints,
        read_metrics(run_dir.metrics),
        step=state.step,
        best=(state.best_loss, state.best_step),
        metric=objective.selects,
        lower=objective.lower_is_better,
    )


def make_compiler(plan: RunPlan, model: Any, stop: StopRequest) -> Eager:
    """Compiles the blocks of the model if ``trainer.compile.enabled``."""
    settings = plain(plan.cfg.trainer.compile)
    if not settings.pop("enabled"):
        return Eager()
    return Compiled(
        model=model,
        device=plan.device,
        dtype=compute_dtype(plan.precision),
        lengths=plan.lengths,
        any_rank=partial(on_any_rank, plan.strategy),
        stopping=lambda: stop.signal is not None,
        **settings,
    )


def on_any_rank(strategy: Strategy, fact: bool) -> bool:
    """Whether something holds on at least one rank; every rank has to call it."""
    return any(row[0] for row in strategy.gather([float(fact)]))


def make_profiler(plan: RunPlan, run_dir: Path, *, report: Callable[[str], None]) -> NoProfiler:
    """Profiles ``trainer.profile.steps`` steps on this rank; no-op if 0."""
    settings, strategy = plain(plan.cfg.trainer.profile), plan.strategy
    if not settings["steps"]:
        return NoProfiler()
    prefix = f"rank{strategy.rank}-" if strategy.world_size > 1 else ""
    return Profiler(run_dir / "profile", **settings, device=plan.device, report=report, prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files and facts that each checkpoint contains, so that it can be used without its run directory."""

    texts: dict[str, str]
    """Configuration, overrides and tokenizer, by file name."""
    facts: dict[str, Any]
    """Entries of the manifest."""


def write_run_files(plan: RunPlan, run_dir: RunDir, info: RunInfo, state: TrainState) -> RunFiles:
    """Write configuration, overrides and tokenizer into the run directory, and this start into ``run.json``."""
    cfg, invocation, world_size = plan.cfg, plan.invocation, plan.batch.world_size
    settings = literal_settings(to_save(invocation.overrides), plain(cfg))
    texts = {
        names.CONFIG: OmegaConf.to_yaml(cfg, resolve=True),
        names.OVERRIDES: settings_text(settings),
        names.TOKENIZER: plan.data.tokenizer.to_json(),
    }
    if (template := template_in(plan.corpus)) is not None:
        texts[names.TEMPLATE] = template.source
    run_dir.write(texts)
    data = plan.data.fingerprints() | {"rules": str(plan.data.rules)}
    data |= {"revision": plan.corpus.revision} if plan.corpus.revision else {}
    facts: dict[str, Any] = {"precision": plan.precision, "max_steps": plan.max_steps, "data": data}
    changes = plan.data.changes(plan.span)
    facts |= {"changes": changes} if changes else {}
    facts |= {"shift": plan.horizon.shift} if plan.horizon.shift else {}
    if cfg.lora and plan.init_from is not None:
        folder = run_dir.checkpoints / checkpoints.name_of(0)
        facts[ADAPTERS] = plan.init_from.as_base(folder=folder, scale=cfg.lora.alpha / cfg.lora.rank)
    if plan.reference is not None:
        facts[REFERENCE] = plan.reference.as_base(folder=run_dir.checkpoints / checkpoints.name_of(0))
    if cfg.reward and (digests := build_rewards(cfg, allow=invocation.allow).digests):
        facts[REWARDS] = digests
    shown = {name: value for name, value in asdict(info).items() if name != "config"}
    made_by = provenance()
    start = {"step": state.step, "world_size": world_size, "settings": settings} | made_by
    start |= {"init_from": cfg.init_from} if cfg.init_from is not None else {}
    run_dir.write_start(start, choices=invocation.choices, info=shown, facts=facts, **made_by)
    return RunFiles(texts=texts, facts={**facts, "world_size": world_size, **made_by})


def make_saver(plan: RunPlan, run_dir: RunDir, files: RunFiles) -> Saver:
    """The writer of this rank's part of the checkpoints."""
    settings, strategy = plan.cfg.checkpoint, plan.strategy
    return Saver(
        run_dir.checkpoints,
        rank=strategy.rank,
        writers=strategy.writers,
        token=strategy.on_rank_zero(partial(secrets.token_hex, 4)),  # all ranks write into one temporary directory
        texts=files.texts,
        facts=files.facts,
        keep=settings.keep,
        asynchronous=strategy.writers > 1 if settings.asynchronous == "auto" else settings.asynchronous,
    )


@dataclass(frozen=True, kw_only=True)
class TrialPass:
    """Forward and backward passes that are no part of training; every rank has to take them."""

    plan: RunPlan
    objective: Objective

    def run(self, length: int) -> None:
        """One pass over a micro-batch of sequences of ``length`` tokens."""
        plan = self.plan
        example = self.objective.example(sequences=plan.batch.batch_size, length=length)
        with plan.strategy.micro_step(last=True):
            with autocast(plan.device, plan.precision):
                loss = self.objective(example)
            loss.share_of_step(weight=self.objective.weight(example), fraction=1.0).backward()

    def gives_finite_gradients(self) -> bool:
        """Whether the weights, as they are, give finite gradients on all ranks."""
        model = self.objective.model
        with preserving_state(model):
            self.run(self.plan.batch.seq_len)
            gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
            bad = first_not_finite(gradients)
        return not on_any_rank(self.plan.strategy, bad is not None)


def warm_up(compiler: Eager, trial: TrialPass, events: Callback, run_dir: RunDir) -> None:
    """Compile what the first step needs, and record it in ``run.json``."""
    if compiled := compiler.warm_up(trial.run, tell=events.on_message):
        run_dir.write_status(names.RUNNING, compile=compiled)


def listeners(plan: RunPlan, run_dir: RunDir, *, start_step: int) -> tuple[Log, Callback]:
    """The metrics log and the callbacks of a run; rank 0 alone logs and shows."""
    if plan.strategy.rank > 0:
        return Log(), Callback()
    config_dir = plan.invocation.config_dir
    console = console_for(flags=() if config_dir is None else ("--config-dir", config_dir))
    # The console comes last, so that the run's outcome is the last thing printed.
    event_log = EventLog(run_dir.path / names.EVENTS)
    events = CallbackList([Curves(report=console.on_message), event_log, plan.logger, console])
    return MetricsLog(run_dir.metrics, step=start_step, tell=console.on_message), events


def loop_settings(cfg: DictConfig, max_steps: int, *, samples: bool = True) -> Settings:
    """The settings of the training loop; without samples of a model that writes no text."""
    trainer = cfg.trainer
    return Settings(
        seed=cfg.seed,
        max_steps=max_steps,
        max_minutes=trainer.max_minutes,
        stop_after_steps=trainer.stop_after_steps,
        grad_clip=trainer.grad_clip,
        log_every=trainer.log_every,
        eval_every=trainer.eval_every,
        sample_every=trainer.sample_every if samples else 0,
        checkpoint_every=trainer.checkpoint_every,
        nonfinite_action=trainer.nonfinite.action,
        nonfinite_patience=trainer.nonfinite.patience,
    )
