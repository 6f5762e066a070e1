"""The training loop."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.errors import UserError
from tinyllm.runs.metrics_log import Log
from tinyllm.training.batch_plan import BatchPlan
from tinyllm.training.callbacks import Callback, Outcome
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.data_arrival import AllData
from tinyllm.training.experience import Collect, as_read
from tinyllm.training.expert_load import StepLoad
from tinyllm.training.flops import training_flops
from tinyllm.training.objectives.base import TRAIN_LOSS, Loss, Objective
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.rank_status import RankStatus
from tinyllm.training.state import TrainState
from tinyllm.training.stopwatch import Stopwatch
from tinyllm.utils.device import peak_memory, shared_casts
from tinyllm.utils.fault_injection import fault, makes_loss_nan
from tinyllm.utils.memory import memory_for
from tinyllm.utils.seeds import derive_seed, seed_device
from tinyllm.utils.stop_signal import Interrupted, Stopping, StopRequest
from tinyllm.utils.tensors import full_tensor, to_floats

LESS_MEMORY = (
    "lower trainer.batch_size and raise trainer.grad_accum_steps, or set trainer.activation_checkpointing=true"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the loop, named as in ``trainer.*``; ``nonfinite_*`` are those of ``trainer.nonfinite``."""

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
    """Trains a state to its horizon; evaluation, samples and checkpoints are passed in."""

    state: TrainState
    objective: Objective
    forward: Callable[..., Loss]
    """The objective, wrapped by the strategy (DDP) and by the compiler's error messages."""
    lr_at: Callable[[int], float]
    """Learning rate of a step."""
    settings: Settings
    batch_plan: BatchPlan
    lengths: Lengths
    """Sequence length of every step."""
    autocast: Callable[[], AbstractContextManager[object]]
    batches: Callable[[], Iterator[Batch]]
    """Starts the stream of micro-batches at the state's step; it ends with the horizon."""
    evaluate: Callable[[Stopping], dict[str, float]]
    sample: Callable[[int, Stopping], str]
    checkpoints: NoCheckpoints
    log: Log
    events: Callback
    stop: StopRequest
    warm_up: Callable[[], None]
    """Compiles the model before the first step, so that no step's time includes it."""
    profiler: NoProfiler
    peak_flops: float | None
    """Peak FLOP/s of all ranks together, for MFU; None: not known."""
    run_dir: Path
    flops_per_token: Callable[[int], int] | None = None
    """FLOPs per token of forward and backward pass by sequence length; None: those of the model."""
    before_first_step: Callable[[Stopping], None] = lambda stopping: None
    """Reads what the objective must know before the weights change, such as a reference."""
    data: AllData = field(default_factory=AllData)
    reports_targets: bool = False
    """Log ``train/targets``, the targets of a step over micro-batches and ranks, as not every token is one."""
    collect: Collect = as_read
    """Makes what a step trains on from what the data set holds."""

    def __post_init__(self) -> None:
        self.strategy = self.state.strategy
        self.model: Any = self.objective.model
        self.device: torch.device = self.model.device
        self.training_flops = self.flops_per_token or training_flops(self.model, None)
        self.at_last_log = self.state.tokens, self.state.flops
        """Tokens and FLOPs at the last log line."""
        self.start_step = self.state.step
        self.last_metrics: dict[str, float] = {}
        self.rank_status = RankStatus()

    def fit(self) -> Outcome:
        """Train to the horizon or until a limit or a signal stops the run; evaluate and save the last step."""
        state, settings = self.state, self.settings
        watch = Stopwatch(before=state.seconds)
        batches = self.batches()
        self.objective.train()
        if not state.step:
            state.average.after_step(0)
        with watch.paused(), suppress(Interrupted):
            self.warm_up()
            self.before_first_step(self.stop_requested)
        reason = self.reason_to_stop(watch)
        if state.owed is not None:  # the run was interrupted during the evaluation of its last step
            with watch.paused():
                reason = self.after_step(dict(state.owed), watch, reason)
        while not reason:
            with watch.paused():
                if reason := self.wait_for_data():
                    break
            with memory_for(
                f"step {state.step + 1}: {self.batch_plan.batch_size} sequences of"
                f" {self.lengths.at(state.step)} tokens at a time",
                hint=LESS_MEMORY,
            ):
                step_metrics = self.train_step(batches)
            reason = self.reason_to_stop(watch)
            record: dict[str, float] = {}
            if is_due(settings.log_every, state.step) or state.step == settings.max_steps:
                record |= self.summarize(step_metrics, watch)
                self.events.on_log(state.step, dict(record))
            with watch.paused():
                reason = self.after_step(record, watch, reason)
                self.profiler.step()
        finished = state.step >= settings.max_steps and state.owed is None
        return self.outcome("finished" if finished else "interrupted", self.last_metrics, "" if finished else reason)

    def wait_for_data(self) -> str:
        """Wait until the data of the next step are there; returns why to stop instead, with the step saved."""
        needed, step = self.state.sequences + self.batch_plan.sequences, self.state.step
        waits = partial(self.events.on_message, f"step {step + 1} waits for its data, which are still being prepared")
        if self.data.wait(needed, stopping=self.stop_requested, tell=waits):
            return ""
        reason = Signals(self.rank_status.signal).name
        if step > self.start_step:
            self.checkpoints.save(best=False, reason=reason, is_final=True)
        return reason

    def after_step(self, record: dict[str, float], watch: Stopwatch, reason: str) -> str:
        """Evaluate, sample, log and save after a step, each if it is due.

        A signal interrupts an evaluation or a sample, and the step is saved at once. A resumed run then starts with
        the interrupted evaluation (``state.owed``), so that its metrics are those of an uninterrupted run.

        Args:
            record: the metrics of the step so far.
            reason: why to stop after this step; "" to continue.

        Returns:
            Why to stop now; "" to continue.
        """
        state, settings = self.state, self.settings
        is_last, best, state.owed = state.step == settings.max_steps, False, None
        if is_due(settings.eval_every, state.step) or (settings.eval_every and is_last):
            try:
                with memory_for(f"the evaluation after step {state.step}", hint="lower trainer.batch_size"):
                    evaluated = self.evaluate(self.stop_requested)
                record |= evaluated
                best = self.update_best(evaluated[self.objective.selects])
                self.events.on_evaluate(state.step, evaluated, best)
            except Interrupted:
                state.owed, reason = dict(record), Signals(self.rank_status.signal).name
        if is_due(settings.sample_every, state.step) and state.owed is None:
            try:
                with memory_for(f"the sample after step {state.step}", hint="lower trainer.sample_tokens"):
                    text = self.sample(state.step, self.stop_requested)
                self.events.on_sample(state.step, text)
            except Interrupted:
                reason = reason or Signals(self.rank_status.signal).name
        state.seconds = watch.seconds
        if record:
            self.last_metrics |= record
            self.log.write(line := self.axes() | record)
            self.events.on_record(line)
        why_saved = "best" if best else "last" if is_last and state.owed is None else reason
        if why_saved or is_due(settings.checkpoint_every, state.step) or self.checkpoints.overdue:
            self.checkpoints.save(best=best, reason=why_saved or "periodic", is_final=bool(reason))
        else:
            self.checkpoints.finish_if_written(all_written=self.rank_status.all_written)
        return reason

    def stop_requested(self) -> bool:
        """Whether any rank has received a signal to stop; all ranks must call it."""
        signals = [int(row[0]) for row in self.strategy.gather([float(self.stop.signal or 0)])]
        self.rank_status = replace(self.rank_status, signal=next(filter(None, signals), 0))
        return bool(self.rank_status.signal)

    def train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Take one optimizer step over all its micro-batches.

        Returns:
            The metrics of the step: learning rate, gradient norm, and all objective metrics except ``train/loss``,
            which is averaged over the steps between two log lines.
        """
        state, optimizer = self.state, self.state.optimizer
        lr = self.lr_at(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.strategy.report_step(state.step)
        fault("step", step=state.step)
        # Dropout depends on seed, step and rank alone, so that a resumed run draws the same masks as an uninterrupted
        # one.
        seed_device(derive_seed(self.settings.seed, "dropout", state.step, self.strategy.rank), self.device)
        experience = self.collect(state.step, [next(batches) for _ in range(self.batch_plan.grad_accum_steps)])
        micro_batches = experience.batches
        # Divide by the number of targets in the whole step, not per micro-batch or rank: every token weighs the same.
        own = [(self.objective.weight(batch), batch.inputs.numel(), batch.counted) for batch in micro_batches]
        of_ranks = self.strategy.gather([float(sum(values)) for values in zip(*own, strict=True)])
        weight, tokens, targets = (int(sum(values)) for values in zip(*of_ranks, strict=True))
        names: list[str] = []
        metric_sums, step_load = torch.zeros((), device=self.device), StepLoad()
        with shared_casts(self.device):
            for micro, batch in enumerate(micro_batches):
                active_blocks = self.model.draw_active_blocks(
                    derive_seed(self.settings.seed, "layerdrop", state.step, micro)
                )
                fraction = self.batch_plan.batch_size / self.batch_plan.sequences
                with self.strategy.micro_step(last=micro == len(micro_batches) - 1):
                    with self.autocast():
                        loss = self.forward(batch.to(self.device), active_blocks)
                    if makes_loss_nan(step=state.step):
                        loss = loss.as_nan()
                    state.scaler.scale(loss.share_of_step(weight=weight, fraction=fraction)).backward()
                names = list(loss.metrics)
                metric_sums = metric_sums + torch.stack(list(loss.metrics.values())).detach() / weight
                step_load.add(loss.expert_load, fraction=fraction)
        state.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip(parameters, self.settings.grad_clip)
        scalars = {"train/grad_norm": norm, **dict(zip(names, metric_sums, strict=True)), **step_load.metrics()}
        metrics = dict(zip(scalars, to_floats(list(scalars.values())), strict=True))  # the step's only device sync
        metrics |= self.exchange_status({name: metrics[name] for name in names})
        train_loss = metrics.pop(TRAIN_LOSS)
        if all(map(math.isfinite, [train_loss, *metrics.values()])):
            state.scaler.step(optimizer)
            state.scaler.update()
            state.average.after_step(state.step + 1)
            step_load.balance([block.ffn for block in self.model.layers()])
            state.skipped = 0
        else:
            self.skip_or_stop(train_loss, metrics["train/grad_norm"])
        optimizer.zero_grad(set_to_none=True)
        # The mean length of a row; batches of pairs or answers are padded to the longest of their own rows.
        rows = micro_batches[0].sequences * len(micro_batches) * self.strategy.world_size
        length = tokens // max(rows, 1)
        state.step += 1
        state.sequences += self.batch_plan.sequences
        state.tokens += tokens
        state.flops += tokens * self.training_flops(length)
        if experience.generated:
            state.flops += experience.generated * self.model.flops_per_token(length)
        if math.isfinite(train_loss):
            state.window["loss"] += train_loss
            state.window["steps"] += 1
        counts = {"train/targets": float(targets)} if self.reports_targets else {}
        return {"train/lr": lr, **counts, **metrics, **experience.metrics}

    def exchange_status(self, metrics: dict[str, float]) -> dict[str, float]:
        """All-reduce the objective's metrics; exchange stop signals and checkpoint status."""
        signal, written = float(self.stop.signal or 0), float(self.checkpoints.written())
        rows = self.strategy.gather([*metrics.values(), signal, written])
        self.rank_status = RankStatus(
            signal=next((int(row[-2]) for row in rows if row[-2]), 0),
            all_written=all(row[-1] for row in rows),
            not_finite=[rank for rank, row in enumerate(rows) if not all(map(math.isfinite, row))],
        )
        return {name: sum(row[i] for row in rows) for i, name in enumerate(metrics)}

    def skip_or_stop(self, loss: float, norm: float) -> None:
        """Handle a NaN or infinite loss or gradient: skip the step, leaving weights and optimizer unchanged, or stop.

        Raises:
            UserError: ``nonfinite.action=stop``, or as many skipped steps in a row as ``nonfinite.patience``.
        """
        state, scale = self.state, self.state.scaler.get_scale()
        state.scaler.update()
        # Overflowing gradients are how fp16 finds its loss scale. They count as a fault only if the loss itself is not
        # finite, or if the scale cannot go any lower.
        overflow = math.isfinite(loss) and 1 < scale != state.scaler.get_scale()
        state.skipped += 0 if overflow else 1
        ranks = ", ".join(f"rank {rank}" for rank in self.rank_status.not_finite if self.strategy.world_size > 1)
        sequences = f"sequences {state.sequences} to {state.sequences + self.batch_plan.sequences - 1}"
        what = f"step {state.step + 1}: loss {loss:g}, gradient norm {norm:g} ({ranks and ranks + ', '}{sequences})"
        scaled = f", loss scale {scale:g} → {state.scaler.get_scale():g}" if state.scaler.is_enabled() else ""
        self.events.on_message(f"{what}: step skipped, weights untouched{scaled}")
        stop = self.settings.nonfinite_action == "stop"
        if overflow or not (stop or state.skipped >= self.settings.nonfinite_patience):
            return
        last_applied_step = state.step + 1 - state.skipped
        self.checkpoints.finish_if_safe(last_applied_step=last_applied_step)
        recovery = self.checkpoints.recovery_hint(last_applied_step=last_applied_step)
        when = "at" if stop else f"for {state.skipped} steps in a row, last at"
        raise UserError(
            f"loss or gradient norm not finite {when} {what}",
            key=f"trainer.nonfinite.{'action' if stop else 'patience'}",
            value="stop" if stop else self.settings.nonfinite_patience,
            hint=f"{recovery}; lower optimizer.lr or trainer.grad_clip",
        )

    def summarize(self, step_metrics: dict[str, float], watch: Stopwatch) -> dict[str, float]:
        """The log record of the steps since the last log record."""
        state, window = self.state, self.state.window
        tokens, flops = state.tokens - self.at_last_log[0], state.flops - self.at_last_log[1]
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
        self.at_last_log = state.tokens, state.flops
        return metrics

    def update_best(self, value: float) -> bool:
        """Record ``value`` of the selecting metric if it is the best so far, and return whether it is.

        A non-finite value is never the best.
        """
        state, sign = self.state, 1 if self.objective.lower_is_better else -1
        if not math.isfinite(value) or (state.best_loss is not None and sign * value >= sign * state.best_loss):
            return False
        state.best_loss, state.best_step = value, state.step
        return True

    def reason_to_stop(self, watch: Stopwatch) -> str:
        """Why to stop after this step; "" to continue."""
        state, settings = self.state, self.settings
        if state.step >= settings.max_steps:
            return "horizon"
        if self.strategy.world_size == 1 and self.stop.signal is not None:
            return self.stop.signal.name
        if self.rank_status.signal:
            return Signals(self.rank_status.signal).name
        if settings.stop_after_steps is not None and state.step >= settings.stop_after_steps:
            return "stop_after_steps"
        if settings.max_minutes is not None and state.step > self.start_step:  # at least one step per start
            over = [float(watch.since_start >= 60 * settings.max_minutes)]
            if self.strategy.gather(over)[0][0]:  # clocks differ, so rank 0's decides
                return "max_minutes"
        return ""

    def axes(self) -> dict[str, float]:
        """The possible x-axes of a curve, part of every record."""
        state = self.state
        return {"step": state.step, "tokens": state.tokens, "flops": state.flops, "seconds": round(state.seconds, 3)}

    def outcome(self, status: str, metrics: dict[str, float], reason: str) -> Outcome:
        """The outcome of the run."""
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
            best_metric=self.objective.selects,
            reason=reason,
            has_checkpoint=self.checkpoints.any_saved(),
        )


def is_due(every: int, step: int) -> bool:
    """Whether an action repeated every ``every`` steps is due after this step; 0: never."""
    return bool(every) and step % every == 0


def clip(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Clip the gradients to a global norm of ``max_norm`` (0: no clipping); returns the norm before clipping."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
