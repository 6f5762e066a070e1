"""One training run, from a checked configuration to its outcome."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import tinyllm
from tinyllm.assemble import build_model, build_optimizer, plain
from tinyllm.config.cli import Invocation
from tinyllm.data.loader import train_batches
from tinyllm.errors import UserError
from tinyllm.inference.evaluation import evaluate
from tinyllm.inference.generator import generate_text
from tinyllm.loggers.console import console_for
from tinyllm.loggers.curves import Curves
from tinyllm.optim.ema import EMA, Average
from tinyllm.planning import Planned, data_facts, plan
from tinyllm.resume import Resumption, to_save
from tinyllm.training import checkpoint as checkpoints
from tinyllm.training.allocator import keep_freed_memory
from tinyllm.training.compiling import Compiled, Eager
from tinyllm.training.deterministic import deterministic
from tinyllm.training.events import Broadcast, Callback, OptimizerGroup, Outcome, RunInfo
from tinyllm.training.faults import fault
from tinyllm.training.hardware import describe_device, peak_flops
from tinyllm.training.memory import activation_bytes
from tinyllm.training.metrics import Log, MetricsLog
from tinyllm.training.objective import AUTOCAST, Objective, autocast
from tinyllm.training.run_dir import FollowedRunDir, RunDir, provenance
from tinyllm.training.saver import Saver
from tinyllm.training.seeds import seed_globals, stream
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
    strategy, ways = planned.strategy, cfg.distributed
    with ExitStack() as stack:
        stop = stack.enter_context(listening())
        stack.enter_context(strategy.running(planned.device, backend=ways.backend, timeout_s=ways.timeout_s))
        agree(planned)
        run_dir = open_run_dir(planned)
        stack.callback(run_dir.close)
        stack.enter_context(deterministic(cfg.trainer.deterministic, planned.device))
        keep_freed_memory()
        try:
            outcome = execute(planned, run_dir, stop)
        except BaseException as error:
            run_dir.write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
        run_dir.write_status(outcome.status, result=asdict(outcome))
        return 128 + Signals[outcome.reason] if outcome.reason.startswith("SIG") else 0


def agree(planned: Planned) -> None:
    """Refuse to train on ranks that were started differently, or find other data.

    Raises:
        UserError: a rank differs from rank 0; all ranks raise it.
    """
    saved = planned.resumption.checkpoint.path.name if planned.resumption else None
    settings = OmegaConf.to_yaml(planned.cfg, resolve=True)
    mine = {
        "the configuration": hashlib.sha256(settings.encode()).hexdigest(),
        "the checkpoint": saved,
        "torch": torch.__version__,
        "tinyllm": tinyllm.__version__,
        **{f"the {name} data": digest for name, digest in data_facts(planned.data).items()},
    }
    first, *others = planned.strategy.gather_objects(mine)
    for rank, theirs in enumerate(others, start=1):
        for name, value in theirs.items():
            if value != first[name]:
                hint = f"rank 0 has {first[name]}; start all ranks with the same command, code and files"
                raise UserError(f"{name} of rank {rank} is another one", file=f"rank {rank}: {value}", hint=hint)


def open_run_dir(planned: Planned) -> RunDir | FollowedRunDir:
    """The run's directory: rank 0 makes it, the others are told where it is."""
    made: list[RunDir] = []

    def make() -> str:
        made.append(RunDir(planned.path, new=planned.is_new))
        checkpoints.clean(made[0].checkpoints)
        return str(made[0].path)

    path = planned.strategy.first(make)
    return made[0] if made else FollowedRunDir(Path(path))


def execute(planned: Planned, run_dir: RunDir | FollowedRunDir, stop: StopRequest) -> Outcome:
    """Build what the plan needs, train, and tell how it ended.

    Raises:
        RankError: with several ranks, what ended this one.
    """
    trained: list[Trainer] = []
    with ExitStack() as stack:
        try:
            trained.append(trainer := assemble(planned, run_dir, stop, stack))
            outcome = trainer.fit()
        except Exception as error:
            step = trained[0].state.step if trained else planned.start_step
            shown = planned.strategy.explained(error, step)
            if trained:
                trained[0].events.on_end(trained[0].outcome("failed", {}, f"{type(error).__name__}: {shown}"))
            if shown is error:
                raise
            raise shown from error
        except BaseException as error:
            if trained:
                trained[0].events.on_end(trained[0].outcome("failed", {}, type(error).__name__))
            raise
        trainer.events.on_end(outcome)
    return outcome


def assemble(planned: Planned, run_dir: RunDir | FollowedRunDir, stop: StopRequest, stack: ExitStack) -> Trainer:
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
    info = describe(planned, model, groups, peak, run_dir.path, tokens=state.tokens)
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


def describe(
    planned: Planned, model: Any, groups: list[OptimizerGroup], peak: float | None, run_dir: Path, *, tokens: int
) -> RunInfo:
    """What the start of the run shows.

    Args:
        tokens: what it was trained on before.
    """
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
    start, lengths = planned.start_step, planned.lengths
    planned_tokens = tokens + batch.sequences * (lengths.total(planned.max_steps) - lengths.total(start))
    notes = list(planned.notes)
    if start < lengths.steps:
        notes.append(
            f"sequences of {lengths.at(start)} tokens at first, of {batch.seq_len} from step {lengths.steps + 1} on"
        )
    if not cfg.trainer.eval_every:
        notes.append("no evaluation: trainer.eval_every=0")
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
        start_step=start,
        start_tokens=tokens,
        planned_tokens=planned_tokens,
        epochs=planned_tokens / epoch,
        flops_per_token=3 * model.flops_per_token(batch.seq_len),
        peak_flops=peak,
        memory_bytes=state_bytes + activations,
        optimizer_groups=groups,
        notes=notes,
        config=plain(cfg),
    )
