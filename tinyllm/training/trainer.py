"""The training loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals

import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.nn.feedforward import FeedForward
from tinyllm.optim.sharded import full_tensor
from tinyllm.runs.metrics_log import Log
from tinyllm.training.batch_plan import Batch
from tinyllm.training.callbacks import Callback, Outcome
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.expert_load import ExpertLoad
from tinyllm.training.objectives.next_token import Losses, Objective
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.state import TrainState
from tinyllm.training.stopwatch import Stopwatch
from tinyllm.utils.device import peak_memory
from tinyllm.utils.fault_injection import fault, spoilt
from tinyllm.utils.memory import memory_for
from tinyllm.utils.seeds import stream
from tinyllm.utils.stop_signal import Interrupted, Stopping, StopRequest

MicroBatch = tuple[Tensor, Tensor]
LESS_MEMORY = (
    "lower trainer.batch_size and raise trainer.grad_accum_steps, or set trainer.activation_checkpointing=true"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loop needs to know; the names are those of ``trainer.*``."""

    seed: int
    max_steps: int
    max_minutes: float | None
    stop_after_steps: int | None
    grad_clip: float
    log_every: int
    eval_every: int
    sample_every: int
    checkpoint_every: int
    nonfinite_action: str
    nonfinite_patience: int


@dataclass(kw_only=True)
class Trainer:
    """Trains a state to its horizon; what to read, evaluate, sample and save comes in as functions."""

    state: TrainState
    objective: Objective
    forward: Callable[..., Losses]
    """The objective as the strategy has it called."""
    strategy: Strategy
    schedule: Callable[[int], float]
    """The learning rate of each step."""
    settings: Settings
    batch: Batch
    lengths: Lengths
    """Of the sequences of each step."""
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    draw_kept: Callable[[int], Sequence[bool] | None]
    """Of a seed: the blocks that a micro-batch passes through; None: all."""
    feed_forwards: Sequence[FeedForward]
    """Of each block; those that balance their experts are told the loads of every step that was taken."""
    batches: Callable[[TrainState], Iterator[MicroBatch]]
    """Micro-batches from where the state stands, without end before the horizon."""
    evaluate: Callable[[Stopping], dict[str, float]]
    sample: Callable[[int, Stopping], str]
    checkpoints: NoCheckpoints
    log: Log
    events: Callback
    stop: StopRequest
    prepare: Callable[[], None]
    """What has to be done before the first step and is no part of its time."""
    profiler: NoProfiler
    flops_per_token: Callable[[int], int]
    """Training FLOPs of one token of sequences of a length."""
    peak_flops: float | None
    run_dir: Path

    def __post_init__(self) -> None:
        self.logged = self.state.tokens, self.state.flops
        """Where the last record stood."""
        self.began_at = self.state.step
        self.last_metrics: dict[str, float] = {}
        self.rank_status = RankStatus()

    def fit(self) -> Outcome:
        """Train to the horizon, or until something asks to stop; the last step is evaluated and saved."""
        state, every = self.state, self.settings
        watch = Stopwatch(before=state.seconds)
        batches = self.batches(state)
        self.objective.train()
        if not state.step:
            state.average.after_step(0)
        with watch.paused():
            self.prepare()
        reason = self.reason_to_stop(watch)
        if state.owed is not None:
            with watch.paused():
                reason = self.close_step(dict(state.owed), watch, reason)
        while not reason:
            with memory_for(
                f"step {state.step + 1}: {self.batch.batch_size} sequences of"
                f" {self.lengths.at(state.step)} tokens at a time",
                hint=LESS_MEMORY,
            ):
                step_metrics = self.train_step(batches)
            reason = self.reason_to_stop(watch)
            record: dict[str, float] = {}
            if is_due(every.log_every, state.step) or state.step == every.max_steps:
                record |= self.summarise(step_metrics, watch)
                self.events.on_log(state.step, dict(record))
            with watch.paused():
                reason = self.close_step(record, watch, reason)
                self.profiler.step()
        finished = state.step >= every.max_steps and state.owed is None
        return self.outcome("finished" if finished else "interrupted", self.last_metrics, "" if finished else reason)

    def close_step(self, record: dict[str, float], watch: Stopwatch, reason: str) -> str:
        """Evaluate, sample, record and save what is due after a step.

        A signal breaks an evaluation or a sample off, and the step is saved at once. An evaluation is owed then: the
        resumed run begins with it, so that nothing differs from a run that was not interrupted.

        Args:
            record: what is known of the step so far.
            reason: why to stop after it; "" to go on.

        Returns:
            The reason to stop now.
        """
        state, every = self.state, self.settings
        ends, best, state.owed = state.step == every.max_steps, False, None
        if is_due(every.eval_every, state.step) or (every.eval_every and ends):
            try:
                with memory_for(f"the evaluation after step {state.step}", hint="lower trainer.batch_size"):
                    evaluated = self.evaluate(self.told_to_stop)
                record |= evaluated
                best = self.is_best(evaluated["val/loss"])
                self.events.on_evaluate(state.step, evaluated, best)
            except Interrupted:
                state.owed, reason = dict(record), Signals(self.rank_status.signal).name
        if is_due(every.sample_every, state.step) and state.owed is None:
            try:
                with memory_for(f"the sample after step {state.step}", hint="lower trainer.sample_tokens"):
                    text = self.sample(state.step, self.told_to_stop)
                self.events.on_sample(state.step, text)
            except Interrupted:
                reason = reason or Signals(self.rank_status.signal).name
        state.seconds = watch.seconds
        if record:
            self.last_metrics |= record
            self.log.write(line := self.axes() | record)
            self.events.on_record(line)
        why = "best" if best else "last" if ends and state.owed is None else reason
        if why or is_due(every.checkpoint_every, state.step) or self.checkpoints.overdue:
            self.checkpoints.save(best=best, why=why or "periodic", leaving=bool(reason))
        else:
            self.checkpoints.finish_if_written(all_written=self.rank_status.all_written)
        return reason

    def told_to_stop(self) -> bool:
        """Whether a signal has asked a rank to stop; every rank has to call it."""
        signals = [int(row[0]) for row in self.strategy.gather([float(self.stop.signal or 0)])]
        self.rank_status = replace(self.rank_status, signal=next(filter(None, signals), 0))
        return bool(self.rank_status.signal)

    def train_step(self, batches: Iterator[MicroBatch]) -> dict[str, float]:
        """One optimizer step over all micro-batches; returns its lr, gradient norm and routing."""
        state, optimizer = self.state, self.state.optimizer
        lr = self.schedule(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.strategy.at_step(state.step)
        fault("step", step=state.step)
        torch.manual_seed(stream(self.settings.seed, "dropout", state.step, self.strategy.rank))
        micro_batches = [next(batches) for _ in range(self.batch.grad_accum_steps)]
        mine = float(sum(int((targets != -100).sum()) for _, targets in micro_batches))
        n_tokens = int(sum(values[0] for values in self.strategy.gather([mine])))
        head, routing = torch.zeros(3, device=self.device), ExpertLoad()
        for micro, (inputs, targets) in enumerate(micro_batches):
            kept = self.draw_kept(stream(self.settings.seed, "layerdrop", state.step, micro))
            share = len(inputs) / self.batch.sequences
            with self.strategy.micro_step(last=micro == len(micro_batches) - 1):
                with self.autocast():
                    losses = self.forward(self.to_device(inputs), self.to_device(targets), kept)
                if spoilt(step=state.step):
                    losses = losses.spoilt()
                state.scaler.scale(losses.to_minimise(n_tokens=n_tokens, share=share)).backward()
            head += torch.stack(losses.head.parts()) / n_tokens
            routing.add(losses, share=share)
        state.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip(parameters, self.settings.grad_clip)
        figures = {"train/grad_norm": norm, **self.objective.named(head), **routing.figures()}
        values = dict(zip(figures, read(list(figures.values())), strict=True))  # the step's one synchronisation
        values |= self.exchange_status({name: values[name] for name in self.objective.names()})
        loss = values.pop("train/loss")
        if all(map(math.isfinite, [loss, *values.values()])):
            state.scaler.step(optimizer)
            state.scaler.update()
            state.average.after_step(state.step + 1)
            routing.balance(self.feed_forwards)
            state.skipped = 0
        else:
            self.skip_or_stop(loss, values["train/grad_norm"])
        optimizer.zero_grad(set_to_none=True)
        length = self.lengths.at(state.step)
        state.step += 1
        state.sequences += self.batch.sequences
        state.tokens += self.batch.sequences * length
        state.flops += self.batch.sequences * length * self.flops_per_token(length)
        if math.isfinite(loss):
            state.window["loss"] += loss
            state.window["steps"] += 1
        return {"train/lr": lr, **values}

    def exchange_status(self, parts: dict[str, float]) -> dict[str, float]:
        """Sum what each rank has of the loss, and hear whether one was told to stop or still writes a checkpoint."""
        signal, written = float(self.stop.signal or 0), float(self.checkpoints.written())
        rows = self.strategy.gather([*parts.values(), signal, written])
        self.rank_status = RankStatus(
            signal=next((int(row[-2]) for row in rows if row[-2]), 0),
            all_written=all(row[-1] for row in rows),
            not_finite=[rank for rank, row in enumerate(rows) if not all(map(math.isfinite, row))],
        )
        return {name: sum(row[i] for row in rows) for i, name in enumerate(parts)}

    def skip_or_stop(self, loss: float, norm: float) -> None:
        """A loss or gradient that is not finite: leave weights and optimizer as they are, or stop.

        Raises:
            UserError: ``nonfinite.action=stop``, or too many in a row.
        """
        state, scale = self.state, self.state.scaler.get_scale()
        state.scaler.update()
        # fp16 finds its loss scale by gradients that overflow: no fault, unless the loss is none or no scale helps
        overflow = math.isfinite(loss) and 1 < scale != state.scaler.get_scale()
        state.skipped += 0 if overflow else 1
        who = ", ".join(f"rank {rank}" for rank in self.rank_status.not_finite if self.strategy.world_size > 1)
        sequences = f"sequences {state.sequences} to {state.sequences + self.batch.sequences - 1}"
        what = f"step {state.step + 1}: loss {loss:g}, gradient norm {norm:g} ({who and who + ', '}{sequences})"
        scaled = f", loss scale {scale:g} → {state.scaler.get_scale():g}" if state.scaler.is_enabled() else ""
        self.events.on_message(f"{what}: step skipped, weights untouched{scaled}")
        stop = self.settings.nonfinite_action == "stop"
        if overflow or not (stop or state.skipped >= self.settings.nonfinite_patience):
            return
        taken = state.step + 1 - state.skipped
        self.checkpoints.give_up(taken=taken)
        raise UserError(
            f"not finite at {what}" if stop else f"not finite for {state.skipped} steps in a row, last at {what}",
            key=f"trainer.nonfinite.{'action' if stop else 'patience'}",
            value="stop" if stop else self.settings.nonfinite_patience,
            hint=f"{self.checkpoints.advice(taken=taken)}; lower optimizer.lr or trainer.grad_clip",
        )

    def summarise(self, step_metrics: dict[str, float], watch: Stopwatch) -> dict[str, float]:
        """The record of the steps since the last one."""
        state, window = self.state, self.state.window
        tokens, flops = state.tokens - self.logged[0], state.flops - self.logged[1]
        seconds = watch.lap()
        metrics = dict(step_metrics)
        if window["steps"]:
            metrics["train/loss"] = window["loss"] / window["steps"]
        metrics["train/tokens"] = state.tokens
        if state.scaler.is_enabled():
            metrics["loss/scale"] = state.scaler.get_scale()
        if seconds > 0:
            metrics["speed/tokens_per_s"] = tokens / seconds
        if seconds > 0 and self.peak_flops:
            metrics["speed/mfu"] = flops / seconds / self.peak_flops
        metrics["memory/peak_bytes"] = peak_memory(self.device)
        state.window = {"loss": 0.0, "steps": 0.0}
        self.logged = state.tokens, state.flops
        return metrics

    def is_best(self, loss: float) -> bool:
        """Whether ``val/loss`` is the lowest so far; a value that is not finite never is."""
        state = self.state
        if not math.isfinite(loss) or (state.best_loss is not None and loss >= state.best_loss):
            return False
        state.best_loss, state.best_step = loss, state.step
        return True

    def reason_to_stop(self, watch: Stopwatch) -> str:
        """Why to leave the loop after this step; "" to go on."""
        state, settings = self.state, self.settings
        if state.step >= settings.max_steps:
            return "horizon"
        if self.strategy.world_size == 1 and self.stop.signal is not None:
            return self.stop.signal.name
        if self.rank_status.signal:
            return Signals(self.rank_status.signal).name
        if settings.stop_after_steps is not None and state.step >= settings.stop_after_steps:
            return "stop_after_steps"
        if settings.max_minutes is not None and state.step > self.began_at:  # every start takes a step at least
            over = [float(watch.of_this_start >= 60 * settings.max_minutes)]
            if self.strategy.gather(over)[0][0]:  # clocks differ: rank 0's decides
                return "max_minutes"
        return ""

    def axes(self) -> dict[str, float]:
        """The x-axes that every record carries."""
        state = self.state
        return {"step": state.step, "tokens": state.tokens, "flops": state.flops, "seconds": round(state.seconds, 3)}

    def outcome(self, status: str, metrics: dict[str, float], reason: str) -> Outcome:
        """How the run ended."""
        state = self.state
        return Outcome(
            status=status,
            step=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            run_dir=self.run_dir,
            metrics=metrics,
            best_step=state.best_step,
            best_val_loss=state.best_loss,
            reason=reason,
            has_checkpoint=self.checkpoints.exist(),
        )

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the training device."""
        return tensor.to(self.device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """What the ranks told each other at the end of a step."""

    signal: int = 0
    """Of the first rank that was told to stop; 0: none was."""
    all_written: bool = True
    not_finite: Sequence[int] = ()
    """Ranks whose part of the loss is no finite number."""


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 is never."""
    return bool(every) and step % every == 0


def read(scalars: list[Tensor]) -> list[float]:
    """The values of scalars on one device, which is waited for once."""
    values: list[float] = torch.stack([scalar.float() for scalar in scalars]).tolist()
    return values


def clip(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most ``max_norm`` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
