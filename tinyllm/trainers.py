"""From a plan to what trains it: every part of a run in its place."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.assemble import build_model, build_optimizer, plain
from tinyllm.data.loader import train_batches
from tinyllm.inference.evaluation import evaluate
from tinyllm.inference.generator import generate_text
from tinyllm.loggers.console import console_for
from tinyllm.loggers.curves import Curves
from tinyllm.optim.ema import EMA, Average
from tinyllm.planning import Planned, data_facts
from tinyllm.resume import to_save
from tinyllm.run_info import run_info
from tinyllm.training import checkpoint as checkpoints
from tinyllm.training.compiling import Compiled, Eager
from tinyllm.training.events import Broadcast, Callback
from tinyllm.training.faults import fault
from tinyllm.training.hardware import peak_flops
from tinyllm.training.metrics import Log, MetricsLog
from tinyllm.training.objective import AUTOCAST, Objective, autocast
from tinyllm.training.run_dir import FollowedRunDir, RunDir, provenance
from tinyllm.training.saver import Saver
from tinyllm.training.seeds import seed_globals, stream
from tinyllm.training.signals import StopRequest
from tinyllm.training.state import TrainState
from tinyllm.training.trainer import MicroBatch, Settings, Trainer


def make_trainer(planned: Planned, run_dir: RunDir | FollowedRunDir, stop: StopRequest, stack: ExitStack) -> Trainer:
    """Everything that trains, in its place; what has to be closed in the end goes onto ``stack``."""
    cfg, device, batch, allow = planned.cfg, planned.device, planned.batch, planned.invocation.allow
    strategy = planned.strategy
    dtype = AUTOCAST.get(planned.precision, torch.float32)
    vocab_size = planned.data.tokenizer.vocab_size
    place = strategy.placer(device, dtype)
    seed_globals(cfg.seed, planned.strategy.rank)
    model = build_model(cfg, vocab_size=vocab_size, seed=cfg.seed, device=device, allow=allow, place=place)
    optimizer, groups = build_optimizer(cfg, model, allow=allow)
    scaler = torch.amp.GradScaler(device.type, enabled=planned.precision == "fp16")
    average = EMA(model, **settings) if (settings := plain(cfg.ema)).pop("enabled") else Average()
    state = TrainState(model=model, optimizer=optimizer, scaler=scaler, average=average, strategy=strategy)
    if planned.resumption:
        checkpoints.load_weights(planned.resumption.checkpoint, model, rows=strategy.rows, local=strategy.local)
        state.load_state_dict(planned.resumption.checkpoint.state())
    elif planned.source is not None:
        checkpoints.load_weights(planned.source, model, rows=strategy.rows, local=strategy.local)
    objective = Objective(
        model,
        chunk_tokens=None if cfg.loss.chunk_tokens == "auto" else cfg.loss.chunk_tokens,
        label_smoothing=cfg.loss.label_smoothing,
        z_loss=cfg.loss.z_loss,
    )
    forward = strategy.wrap(objective, find_unused=cfg.distributed.find_unused_parameters)
    compiling = plain(cfg.trainer.compile)
    compiler = Eager()
    if compiling.pop("enabled"):
        compiler = Compiled(
            model=model,
            device=device,
            dtype=dtype,
            lengths=planned.lengths,
            agree=lambda failed: any(row[0] for row in strategy.gather([float(failed)])),
            stopping=lambda: stop.signal is not None,
            **compiling,
        )
    stack.callback(compiler.close)
    peak = peak_flops(device, planned.precision)
    peak = peak * batch.world_size if peak else None
    info = run_info(planned, model, groups, peak, run_dir.path, tokens=state.tokens)
    facts = {"precision": planned.precision, "max_steps": planned.max_steps, "data": data_facts(planned.data)}
    texts = {
        checkpoints.CONFIG: OmegaConf.to_yaml(cfg, resolve=True),
        checkpoints.OVERRIDES: OmegaConf.to_yaml(OmegaConf.create(to_save(planned.invocation.overrides))),
        checkpoints.TOKENIZER: planned.data.tokenizer.to_json(),
    }
    run_dir.write(texts)
    shown = {name: value for name, value in asdict(info).items() if name != "config"}
    run_dir.write_status("running", info=shown, facts=facts, **provenance())
    log, events = listeners(planned, run_dir, start_step=state.step)
    stack.callback(log.close)
    if planned.resumption:
        events.load_state_dict(planned.resumption.checkpoint.state().get("loggers", {}))
    in_autocast = partial(autocast, device, planned.precision)
    read = partial(
        evaluate,
        model,
        seq_len=batch.seq_len,
        batch_size=batch.batch_size,
        device=device,
        autocast=in_autocast,
        rank=strategy.rank,
        world_size=strategy.world_size,
        gather=strategy.gather,
    )

    @average.applied()
    @strategy.reading()
    @compiler.reading()
    def evaluate_both() -> dict[str, float]:
        fault("evaluate")
        metrics = read(planned.data.val, max_tokens=cfg.trainer.eval_tokens)
        if cfg.trainer.eval_train_tokens:
            fixed = read(planned.data.train, max_tokens=cfg.trainer.eval_train_tokens, name="train_fixed")
            metrics["train/eval_loss"] = fixed["train_fixed/loss"]
        return metrics

    @average.applied()
    @strategy.reading()
    @compiler.reading()
    def sample(step: int) -> str:
        settings = {"max_new_tokens": cfg.trainer.sample_tokens, "seed": stream(cfg.seed, "sample", step)}
        return generate_text(model, planned.data.tokenizer, cfg.trainer.sample_prompt, autocast=in_autocast, **settings)

    def run(length: int) -> None:
        ids = torch.zeros(batch.batch_size, length, dtype=torch.int64, device=device)
        with strategy.micro_step(last=True):
            with in_autocast():
                losses = objective(ids, ids)
            losses.to_minimise(n_tokens=ids.numel(), share=1.0).backward()

    def prepare() -> None:
        if facts := compiler.warm_up(run, tell=events.on_message):
            run_dir.write_status("running", compile=facts)

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

    asynchronous = cfg.checkpoint.asynchronous
    saver = Saver(
        run_dir.checkpoints,
        rank=strategy.rank,
        writers=strategy.writers,
        token=strategy.first(lambda: secrets.token_hex(4)),
        texts=texts,
        facts={**facts, "world_size": batch.world_size, **provenance()},
        keep=cfg.checkpoint.keep,
        asynchronous=strategy.writers > 1 if asynchronous == "auto" else asynchronous,
    )
    stack.callback(saver.close)
    events.on_start(info)
    return Trainer(
        state=state,
        objective=objective,
        forward=compiler.calls(forward),
        strategy=strategy,
        schedule=planned.schedule,
        settings=_settings(cfg, planned.max_steps),
        batch=batch,
        lengths=planned.lengths,
        device=device,
        autocast=in_autocast,
        draw_kept=model.draw_kept,
        feed_forwards=[block.ffn for block in model.layers()],
        batches=batches,
        evaluate=evaluate_both,
        sample=sample,
        saver=saver,
        log=log,
        events=events,
        stop=stop,
        prepare=prepare,
        flops_per_token=cache(lambda length: 3 * model.flops_per_token(length)),
        peak_flops=peak,
        run_dir=run_dir.path,
    )


def listeners(planned: Planned, run_dir: RunDir | FollowedRunDir, *, start_step: int) -> tuple[Log, Callback]:
    """What takes the metrics and events of a run; on ranks above 0 nothing does."""
    if planned.strategy.rank > 0:
        return Log(), Callback()
    config_dir = planned.invocation.config_dir
    console = console_for(flags=() if config_dir is None else ("--config-dir", config_dir))
    # The console comes last, so that the last thing it shows is how the run ended.
    events = Broadcast([Curves(report=console.on_message), planned.logger, console])
    return MetricsLog(run_dir.metrics, step=start_step), events


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
