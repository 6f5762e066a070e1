"""One training run, from a checked configuration to its outcome."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.assemble import (
    build_model,
    build_optimizer,
    plain,
)
from tinyllm.config.build import build
from tinyllm.config.cli import Invocation
from tinyllm.data.loader import train_batches
from tinyllm.inference.evaluation import evaluate
from tinyllm.inference.generator import generate_text
from tinyllm.loggers.console import console_for
from tinyllm.loggers.curves import Curves
from tinyllm.optim.ema import EMA, Average
from tinyllm.planning import Planned, data_facts, plan
from tinyllm.resume import Resumption, to_save
from tinyllm.training import checkpoint as checkpoints
from tinyllm.training.allocator import keep_freed_memory
from tinyllm.training.deterministic import deterministic
from tinyllm.training.events import Broadcast, Callback, OptimizerGroup, Outcome, RunInfo
from tinyllm.training.hardware import describe_device, peak_flops
from tinyllm.training.memory import activation_bytes
from tinyllm.training.metrics import MetricsLog
from tinyllm.training.objective import AUTOCAST, Objective, autocast
from tinyllm.training.run_dir import RunDir, provenance
from tinyllm.training.seeds import stream
from tinyllm.training.signals import StopRequest, listening
from tinyllm.training.state import TrainState
from tinyllm.training.trainer import MicroBatch, Settings, Trainer


def train(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> int:
    """Train as the configuration says; returns the exit code.

    Raises:
        UserError: something does not fit; wherever it can be known by then, before anything is written.
    """
    planned = plan(cfg, invocation, resumption)
    if planned.start_step >= planned.max_steps:
        print(f"nothing to do: {planned.path} is complete at step {planned.start_step} of {planned.max_steps}")
        return 0
    with ExitStack() as stack:
        run_dir = RunDir(planned.path, new=planned.is_new)
        stack.callback(run_dir.close)
        stack.enter_context(deterministic(cfg.trainer.deterministic, planned.device))
        keep_freed_memory()
        stop = stack.enter_context(listening())
        try:
            outcome = execute(planned, run_dir, stop, stack)
        except BaseException as error:
            run_dir.write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
        run_dir.write_status(outcome.status, result=asdict(outcome))
        return stop.exit_code


def execute(planned: Planned, run_dir: RunDir, stop: StopRequest, stack: ExitStack) -> Outcome:
    """Build what the plan needs, train, and tell how it ended."""
    cfg, device, batch, allow = planned.cfg, planned.device, planned.batch, planned.invocation.allow
    model = build_model(cfg, vocab_size=planned.data.tokenizer.vocab_size, seed=cfg.seed, device=device, allow=allow)
    optimizer, groups = build_optimizer(cfg, model, allow=allow)
    scaler = torch.amp.GradScaler(device.type, enabled=planned.precision == "fp16")
    average = EMA(model, **settings) if (settings := plain(cfg.ema)).pop("enabled") else Average()
    state = TrainState(model=model, optimizer=optimizer, scaler=scaler, average=average)
    checkpoints.clean(run_dir.checkpoints)
    if planned.resumption:
        checkpoints.load_weights(planned.resumption.checkpoint, model)
        state.load_state_dict(planned.resumption.checkpoint.state())
    elif planned.source is not None:
        checkpoints.load_weights(planned.source, model)
    peak = peak_flops(device, planned.precision)
    info = describe(planned, model, groups, peak, run_dir.path)
    facts = {"precision": planned.precision, "max_steps": planned.max_steps, "data": data_facts(planned.data)}
    texts = {
        checkpoints.CONFIG: OmegaConf.to_yaml(cfg, resolve=True),
        checkpoints.OVERRIDES: OmegaConf.to_yaml(OmegaConf.create(to_save(planned.invocation.overrides))),
        checkpoints.TOKENIZER: planned.data.tokenizer.to_json(),
    }
    for name, text in texts.items():
        (run_dir.path / name).write_text(text, encoding="utf-8")
    shown = {name: value for name, value in asdict(info).items() if name != "config"}
    run_dir.write_status("running", info=shown, facts=facts, **provenance())
    log = MetricsLog(run_dir.metrics, step=state.step)
    stack.callback(log.close)
    config_dir = planned.invocation.config_dir
    console = console_for(flags=() if config_dir is None else ("--config-dir", config_dir))
    logger = build(cfg.logger, path="logger", allow=allow) if cfg.logger else Callback()
    events = Broadcast([Curves(report=console.on_message), console, logger])
    in_autocast = partial(autocast, device, planned.precision)
    read = partial(
        evaluate, model, seq_len=batch.seq_len, batch_size=batch.batch_size, device=device, autocast=in_autocast
    )

    @average.applied()
    def evaluate_both() -> dict[str, float]:
        metrics = read(planned.data.val, max_tokens=cfg.trainer.eval_tokens)
        if cfg.trainer.eval_train_tokens:
            fixed = read(planned.data.train, max_tokens=cfg.trainer.eval_train_tokens, name="train_fixed")
            metrics["train/eval_loss"] = fixed["train_fixed/loss"]
        return metrics

    @average.applied()
    def sample(step: int) -> str:
        settings = {"max_new_tokens": cfg.trainer.sample_tokens, "seed": stream(cfg.seed, "sample", step)}
        return generate_text(model, planned.data.tokenizer, cfg.trainer.sample_prompt, autocast=in_autocast, **settings)

    def save(state: TrainState, is_best: bool) -> Path:
        path = checkpoints.save(
            run_dir.checkpoints,
            step=state.step,
            weights=model.state_dict(),
            state=state.state_dict(),
            texts=texts,
            facts={**facts, "world_size": batch.world_size, **provenance()},
        )
        if is_best:
            checkpoints.set_hint(run_dir.checkpoints, "best", state.step)
        checkpoints.set_hint(run_dir.checkpoints, "last", state.step)
        checkpoints.prune(run_dir.checkpoints, keep=cfg.checkpoint.keep, current=state.step)
        return path

    def batches(state: TrainState) -> Iterator[MicroBatch]:
        return train_batches(
            planned.sampler,
            start_step=state.step,
            end_step=planned.max_steps,
            batch_size=batch.batch_size,
            grad_accum_steps=batch.grad_accum_steps,
            rank=planned.strategy.rank,
            world_size=batch.world_size,
            shift=state.sequences - state.step * batch.sequences,
            **plain(cfg.dataloader) | {"pin_memory": planned.pin_memory},
        )

    chunk = cfg.loss.chunk_tokens
    trainer = Trainer(
        state=state,
        objective=Objective(
            model,
            chunk_tokens=None if chunk == "auto" else chunk,
            label_smoothing=cfg.loss.label_smoothing,
            z_loss=cfg.loss.z_loss,
        ),
        schedule=planned.schedule,
        settings=_settings(cfg, planned.max_steps),
        batch=batch,
        device=device,
        autocast=in_autocast,
        draw_kept=model.draw_kept,
        feed_forwards=[block.ffn for block in model.layers()],
        batches=batches,
        evaluate=evaluate_both,
        sample=sample,
        save=save,
        log=log,
        events=events,
        stop=stop,
        flops_per_token=info.flops_per_token,
        peak_flops=peak,
        rank=planned.strategy.rank,
    )
    events.on_start(info)
    try:
        outcome = trainer.fit()
    except BaseException as error:
        events.on_end(trainer.outcome("failed", {}, f"{type(error).__name__}: {error}"))
        raise
    events.on_end(outcome)
    return outcome


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


def describe(planned: Planned, model: Any, groups: list[OptimizerGroup], peak: float | None, run_dir: Path) -> RunInfo:
    """What the start of the run shows."""
    batch, cfg = planned.batch, planned.cfg
    counts = model.parameter_counts()
    dtype = AUTOCAST.get(planned.precision, torch.float32)
    sketch = build_model(
        cfg, vocab_size=model.vocab_size, seed=0, device=torch.device("meta"), allow=planned.invocation.allow
    )
    activations = activation_bytes(
        sketch,
        batch_size=batch.batch_size,
        seq_len=batch.seq_len,
        device=planned.device.type,
        dtype=dtype,
    )
    kernels = (block.attn.chosen_kernel(planned.device.type, dtype, batch.seq_len) for block in model.layers())
    copies = 5 if cfg.ema.enabled else 4  # weights, gradients, two moments and perhaps an average, in fp32
    state_bytes = counts.total * 4 * copies
    epoch = planned.sampler.windows_per_epoch * batch.seq_len
    return RunInfo(
        run_dir=run_dir,
        device=describe_device(planned.device),
        precision=planned.precision,
        attention_kernel=", ".join(dict.fromkeys(kernels)),
        world_size=batch.world_size,
        parameters=counts.total,
        active_parameters=counts.active,
        embedding_parameters=counts.embedding,
        tied=model.head is None,
        tokenizer=planned.invocation.choices.get("tokenizer", "custom"),
        vocab_size=model.vocab_size,
        dataset=planned.invocation.choices.get("dataset", "custom"),
        train_tokens=planned.data.train.n_tokens,
        val_tokens=planned.data.val.n_tokens,
        batch_size=batch.batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        seq_len=batch.seq_len,
        tokens_per_step=batch.tokens,
        max_steps=planned.max_steps,
        start_step=planned.start_step,
        epochs=planned.max_steps * batch.tokens / epoch,
        flops_per_token=3 * model.flops_per_token(batch.seq_len),
        peak_flops=peak,
        memory_bytes=state_bytes + activations,
        optimizer_groups=groups,
        notes=planned.notes + ([] if cfg.trainer.eval_every else ["no evaluation: trainer.eval_every=0"]),
        config=plain(cfg),
    )
