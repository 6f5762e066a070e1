"""From a plan to what trains it: every part of a run in its place."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.saved import literal_settings, settings_text
from tinyllm.data.loader import train_batches
from tinyllm.inference.decoding import Autocast
from tinyllm.inference.evaluation import evaluate
from tinyllm.inference.generator import generate_text
from tinyllm.loggers.console import console_for
from tinyllm.loggers.curves import Curves
from tinyllm.nn.finite import first_not_finite
from tinyllm.optim.ema import EMA, Average
from tinyllm.programs.builders import build_model, build_optimizer, plain
from tinyllm.programs.resume import to_save
from tinyllm.programs.run_plan import RunPlan, data_facts
from tinyllm.programs.run_summary import run_info
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs import layout as names
from tinyllm.runs.checkpoint_parts import STATE
from tinyllm.runs.checkpoint_writer import Saver
from tinyllm.runs.directory import FollowedRunDir, RunDir
from tinyllm.runs.lineage import follow
from tinyllm.runs.metrics_log import Log, MetricsLog, read_metrics
from tinyllm.runs.provenance import provenance
from tinyllm.runs.state_schema import read_checked
from tinyllm.training.callbacks import Callback, CallbackList, OptimizerGroup
from tinyllm.training.checkpointing import Checkpointing, NoCheckpoints
from tinyllm.training.compilation import Compiled, Eager, untouched
from tinyllm.training.objectives.next_token import Objective
from tinyllm.training.profiler import NoProfiler, Profiler
from tinyllm.training.state import TrainState
from tinyllm.training.trainer import MicroBatch, Settings, Trainer
from tinyllm.utils.device import autocast, compute_dtype, peak_flops
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.interrupt import Stopping
from tinyllm.utils.seeds import seed_globals, stream
from tinyllm.utils.stop_signal import StopRequest


def make_trainer(planned: RunPlan, run_dir: RunDir | FollowedRunDir, stop: StopRequest, stack: ExitStack) -> Trainer:
    """Everything that trains, in its place; what has to be closed in the end goes onto ``stack``."""
    cfg, device, batch, strategy = planned.cfg, planned.device, planned.batch, planned.strategy
    state, groups, of_loggers = make_state(planned)
    state.best_loss, state.best_step = strategy.on_rank_zero(
        lambda: follow(
            run_dir.checkpoints,
            read_metrics(run_dir.metrics),
            step=state.step,
            best=(state.best_loss, state.best_step),
        )
    )
    model: Any = state.model
    objective = Objective(
        model,
        chunk_tokens=None if cfg.loss.chunk_tokens == "auto" else cfg.loss.chunk_tokens,
        label_smoothing=cfg.loss.label_smoothing,
        z_loss=cfg.loss.z_loss,
    )
    forward = strategy.wrap(objective, find_unused=cfg.distributed.find_unused_parameters)
    compiler = make_compiler(planned, model, stop)
    stack.callback(compiler.close)
    peak = peak_flops(device, planned.precision)
    peak = peak * batch.world_size if peak else None
    info = run_info(planned, model, groups, peak, run_dir.path, tokens=state.tokens)
    data = data_facts(planned.data) | {"rules": str(planned.data.rules)}
    facts = {"precision": planned.precision, "max_steps": planned.max_steps, "data": data}
    facts |= {"shift": planned.horizon.shift} if planned.horizon.shift else {}
    settings = literal_settings(to_save(planned.invocation.overrides), plain(cfg))
    texts = {
        names.CONFIG: OmegaConf.to_yaml(cfg, resolve=True),
        names.OVERRIDES: settings_text(settings),
        names.TOKENIZER: planned.data.tokenizer.to_json(),
    }
    run_dir.write(texts)
    shown = {name: value for name, value in asdict(info).items() if name != "config"}
    made_by = provenance()
    begun = {"step": state.step, "world_size": batch.world_size, "settings": settings}
    choices = planned.invocation.choices
    run_dir.write_start(begun | made_by, choices=choices, info=shown, facts=facts, **made_by)
    # the record of a step whose evaluation is owed is written again, whole
    log, events = listeners(planned, run_dir, start_step=state.step - (state.owed is not None))
    events.load_state_dict(of_loggers)
    stack.callback(log.close)
    saver = Saver(
        run_dir.checkpoints,
        rank=strategy.rank,
        writers=strategy.writers,
        token=strategy.on_rank_zero(lambda: secrets.token_hex(4)),
        texts=texts,
        facts={**facts, "world_size": batch.world_size, **made_by},
        keep=cfg.checkpoint.keep,
        asynchronous=strategy.writers > 1 if cfg.checkpoint.asynchronous == "auto" else cfg.checkpoint.asynchronous,
    )
    stack.callback(saver.close)
    in_autocast = partial(autocast, device, planned.precision)

    def try_out(length: int) -> None:
        ids = torch.zeros(batch.batch_size, length, dtype=torch.int64, device=device)
        with strategy.micro_step(last=True):
            with in_autocast():
                losses = objective(ids, ids)
            losses.to_minimise(n_tokens=ids.numel(), share=1.0).backward()

    def usable() -> bool:
        with untouched(model):
            try_out(batch.seq_len)
            gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
            found = first_not_finite(gradients)
        return not any(row[0] for row in strategy.gather([float(found is not None)]))

    def prepare() -> None:
        if compiled := compiler.warm_up(try_out, tell=events.on_message):
            run_dir.write_status("running", compile=compiled)

    def batches(state: TrainState) -> Iterator[MicroBatch]:
        return train_batches(
            planned.sampler,
            start_step=state.step,
            end_step=planned.max_steps,
            batch_size=batch.batch_size,
            grad_accum_steps=batch.grad_accum_steps,
            rank=strategy.rank,
            world_size=batch.world_size,
            shift=state.sequences - state.step * batch.sequences,
            length_at=planned.lengths.at,
            **plain(cfg.dataloader) | {"pin_memory": planned.pin_memory},
        )

    evaluate, sample = readers(planned, state, in_autocast, compiler)
    checkpoints_of_run = NoCheckpoints()
    if cfg.checkpoint.enabled:
        checkpoints_of_run = Checkpointing(
            state=state,
            strategy=strategy,
            saver=saver,
            log=log,
            events=events,
            usable=usable,
            directory=run_dir.checkpoints,
        )
    events.on_start(info)
    return Trainer(
        state=state,
        objective=objective,
        forward=compiler.calls(forward),
        strategy=strategy,
        schedule=planned.lr,
        settings=_settings(cfg, planned.max_steps),
        batch=batch,
        lengths=planned.lengths,
        device=device,
        autocast=in_autocast,
        draw_kept=model.draw_kept,
        feed_forwards=[block.ffn for block in model.layers()],
        batches=batches,
        evaluate=evaluate,
        sample=sample,
        checkpoints=checkpoints_of_run,
        log=log,
        events=events,
        stop=stop,
        prepare=prepare,
        profiler=make_profiler(planned, run_dir.path, report=events.on_message),
        flops_per_token=cache(lambda length: 3 * model.flops_per_token(length)),
        peak_flops=peak,
        run_dir=run_dir.path,
    )


def make_state(planned: RunPlan) -> tuple[TrainState, list[OptimizerGroup], dict[str, Any]]:
    """Model, optimizer and what else changes in training, as at the first step or as a checkpoint has it.

    Returns:
        The state, the groups of its optimizer, and what loggers had saved.
    """
    cfg, device, strategy, allow = planned.cfg, planned.device, planned.strategy, planned.invocation.allow
    seed_globals(cfg.seed, strategy.rank)
    model = build_model(
        cfg,
        vocab_size=planned.data.tokenizer.vocab_size,
        seed=cfg.seed,
        device=device,
        allow=allow,
        place=strategy.placer(device, compute_dtype(planned.precision)),
    )
    optimizer, groups = build_optimizer(cfg, model, allow=allow)
    scaler = torch.amp.GradScaler(device.type, enabled=planned.precision == "fp16")
    average = EMA(model, **settings) if (settings := plain(cfg.ema)).pop("enabled") else Average()
    state = TrainState(model=model, optimizer=optimizer, scaler=scaler, average=average, strategy=strategy)
    source = planned.resumption.checkpoint if planned.resumption else planned.source
    if source is not None:
        checkpoints.load_weights(source, model, rows=strategy.rows, local=strategy.local_tensor)
    saved = read_checked(planned.resumption.checkpoint) if planned.resumption else {}
    if planned.resumption:
        state.load_state_dict(saved, file=planned.resumption.checkpoint.path / STATE)
    return state, groups, saved.get("loggers", {})


def make_compiler(planned: RunPlan, model: Any, stop: StopRequest) -> Eager:
    """What compiles the model's blocks, if that is asked for."""
    settings, strategy = plain(planned.cfg.trainer.compile), planned.strategy
    if not settings.pop("enabled"):
        return Eager()
    return Compiled(
        model=model,
        device=planned.device,
        dtype=compute_dtype(planned.precision),
        lengths=planned.lengths,
        agree=lambda failed: any(row[0] for row in strategy.gather([float(failed)])),
        stopping=lambda: stop.signal is not None,
        **settings,
    )


def make_profiler(planned: RunPlan, run_dir: Path, *, report: Callable[[str], None]) -> NoProfiler:
    """What records some steps of this rank, if that is asked for."""
    settings, strategy = plain(planned.cfg.trainer.profile), planned.strategy
    if not settings["steps"]:
        return NoProfiler()
    prefix = f"rank{strategy.rank}-" if strategy.world_size > 1 else ""
    return Profiler(run_dir / "profile", **settings, device=planned.device, report=report, prefix=prefix)


def readers(
    planned: RunPlan, state: TrainState, in_autocast: Autocast, compiler: Eager
) -> tuple[Callable[[Stopping], dict[str, float]], Callable[[int, Stopping], str]]:
    """The evaluation and the sample of a step, both with the averaged weights where there are any."""
    cfg, strategy, average = planned.cfg, planned.strategy, state.average
    model: Any = state.model
    read = partial(
        evaluate,
        model,
        seq_len=planned.batch.seq_len,
        batch_size=planned.batch.batch_size,
        device=planned.device,
        autocast=in_autocast,
        rank=strategy.rank,
        world_size=strategy.world_size,
        gather=strategy.gather,
    )

    @average.applied()
    @strategy.reading()
    @compiler.reading()
    def evaluate_both(stopping: Stopping) -> dict[str, float]:
        fault("evaluate")
        metrics = read(planned.data.val, max_tokens=cfg.trainer.eval_tokens, stopping=stopping)
        if cfg.trainer.eval_train_tokens:
            train_tokens = cfg.trainer.eval_train_tokens
            fixed = read(planned.data.train, max_tokens=train_tokens, name="train_fixed", stopping=stopping)
            metrics["train/eval_loss"] = fixed["train_fixed/loss"]
        return metrics

    @average.applied()
    @strategy.reading()
    @compiler.reading()
    def sample(step: int, stopping: Stopping) -> str:
        return generate_text(
            model,
            planned.data.tokenizer,
            cfg.trainer.sample_prompt,
            max_new_tokens=cfg.trainer.sample_tokens,
            seed=stream(cfg.seed, "sample", step),
            **plain(cfg.trainer.sample),
            autocast=in_autocast,
            stopping=stopping,
        )

    return evaluate_both, sample


def listeners(planned: RunPlan, run_dir: RunDir | FollowedRunDir, *, start_step: int) -> tuple[Log, Callback]:
    """What takes the metrics and events of a run; on ranks above 0 nothing does."""
    if planned.strategy.rank > 0:
        return Log(), Callback()
    config_dir = planned.invocation.config_dir
    console = console_for(flags=() if config_dir is None else ("--config-dir", config_dir))
    # The console comes last, so that the last thing it shows is how the run ended.
    events = CallbackList([Curves(report=console.on_message), planned.logger, console])
    return MetricsLog(run_dir.metrics, step=start_step, tell=console.on_message), events


def _settings(cfg: DictConfig, max_steps: int) -> Settings:
    trainer = cfg.trainer
    same = (
        "max_minutes",
        "stop_after_steps",
        "grad_clip",
        "log_every",
        "eval_every",
        "sample_every",
        "checkpoint_every",
    )
    return Settings(
        seed=cfg.seed,
        max_steps=max_steps,
        nonfinite_action=trainer.nonfinite.action,
        nonfinite_patience=trainer.nonfinite.patience,
        **{name: trainer[name] for name in same},
    )
