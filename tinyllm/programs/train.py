"""One training run, from a checked configuration to its exit code."""

import hashlib
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from signal import Signals

import torch
from omegaconf import DictConfig, OmegaConf

import tinyllm
from tinyllm.config.cli.main import Invocation
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.programs.resume import continue_job
from tinyllm.programs.run_plan import RunPlan, make_plan
from tinyllm.programs.trainer_builder import make_trainer
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.directory import LockedRunDir, RunDir
from tinyllm.runs.layout import FAILED, FINISHED, METRICS
from tinyllm.runs.metrics_log import finite, last_record
from tinyllm.runs.metrics_tail import AXES
from tinyllm.training.callbacks import Outcome
from tinyllm.utils.device import deterministic, keep_freed_memory
from tinyllm.utils.stop_signal import StopRequest, listening


def train(cfg: DictConfig, invocation: Invocation) -> int:
    """Train as the configuration says; returns the exit code.

    Raises:
        UserError: something does not fit together; raised before anything is written wherever that is possible.
    """
    resumption = continue_job(cfg, invocation) if invocation.is_job else invocation.rewrite_result
    plan = make_plan(cfg, invocation, resumption)
    with ExitStack() as background:
        for split in plan.data.splits("train").values():
            if isinstance(split, Split):  # conversations and pairs are never prepared in the background
                background.callback(split.close)
        return train_planned(plan)


def train_planned(plan: RunPlan) -> int:
    """Train as planned; returns the exit code.

    Raises:
        UserError: the ranks differ, or the run directory cannot be created.
    """
    if plan.is_complete:
        print(f"nothing to do: {plan.path} is complete at step {plan.start_step} of {plan.max_steps}")
        return 0
    cfg, distributed = plan.cfg, plan.cfg.distributed
    with ExitStack() as stack:
        stop = stack.enter_context(listening())
        stack.enter_context(
            plan.strategy.running(plan.device, backend=distributed.backend, timeout_s=distributed.timeout_s)
        )
        check_ranks_agree(plan)
        run_dir = open_run_dir(plan)
        stack.callback(run_dir.close)
        stack.enter_context(deterministic(cfg.trainer.deterministic, plan.device))
        keep_freed_memory()
        try:
            outcome = execute(plan, run_dir, stop)
        except BaseException as error:
            with suppress(Exception):  # writing may fail for the same reason, e.g. a full disk: report the first error
                run_dir.write_status(FAILED, reason=f"{type(error).__name__}: {error}")
            raise
        run_dir.write_status(outcome.status, result=asdict(replace(outcome, metrics=finite(outcome.metrics))))
        return 128 + Signals[outcome.reason] if outcome.reason.startswith("SIG") else 0


def with_last_metrics(outcome: Outcome, file: Path) -> Outcome:
    """The outcome with the last metrics of a run that had taken all of its steps when it was resumed."""
    if outcome.metrics or outcome.status != FINISHED:
        return outcome
    record = last_record(file) or {}
    return replace(outcome, metrics={name: value for name, value in record.items() if name not in AXES})


def check_ranks_agree(plan: RunPlan) -> None:
    """Refuse to train on ranks with different settings, code or data.

    Raises:
        UserError: a rank differs from rank 0; all ranks raise it.
    """
    settings = OmegaConf.to_yaml(plan.cfg, resolve=True)
    facts = {
        "the configuration": hashlib.sha256(settings.encode()).hexdigest(),
        "the checkpoint": plan.resumption.checkpoint.path.name if plan.resumption else None,
        "torch": torch.__version__,
        "tinyllm": tinyllm.__version__,
        **{f"the {name} data": digest for name, digest in plan.data.fingerprints().items()},
    }
    first, *others = plan.strategy.gather_objects(facts)
    for rank, other in enumerate(others, start=1):
        for name, value in other.items():
            if value != first[name]:
                hint = f"rank 0 has {first[name]}; start all ranks with the same command, code and files"
                raise UserError(f"rank {rank} differs from rank 0 in {name}", file=f"rank {rank}: {value}", hint=hint)


def open_run_dir(plan: RunPlan) -> RunDir:
    """The run directory: rank 0 creates and locks it, the other ranks learn its path."""
    opened: RunDir = plan.strategy.on_rank_zero(partial(create_run_dir, plan))
    return opened


def create_run_dir(plan: RunPlan) -> RunDir:
    """The run directory, locked by this process, without what a killed process left among its checkpoints."""
    run_dir = LockedRunDir(plan.path, new=plan.is_new)
    checkpoints.clean(run_dir.checkpoints)
    return run_dir


def execute(plan: RunPlan, run_dir: RunDir, stop: StopRequest) -> Outcome:
    """Build the trainer, train, and report the outcome to its callbacks.

    Raises:
        RankError: with several ranks, the error that ended this rank.
    """
    with ExitStack() as stack:
        trainer = None
        try:
            trainer = make_trainer(plan, run_dir, stop, stack)
            with trainer.profiler:
                outcome = with_last_metrics(trainer.fit(), run_dir.path / METRICS)
        except Exception as error:
            shown = plan.strategy.name_rank(error, trainer.state.step if trainer else plan.start_step)
            if trainer:
                trainer.events.on_end(trainer.outcome(FAILED, {}, f"{type(error).__name__}: {shown}"))
            if shown is error:
                raise
            raise shown from error
        except BaseException as error:
            if trainer:
                trainer.events.on_end(trainer.outcome(FAILED, {}, type(error).__name__))
            raise
        trainer.events.on_end(outcome)
    return outcome
