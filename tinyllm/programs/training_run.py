"""One training run, from a checked configuration to its outcome."""

import hashlib
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from signal import Signals

import torch
from omegaconf import DictConfig, OmegaConf

import tinyllm
from tinyllm.config.cli.main import Invocation
from tinyllm.errors import UserError
from tinyllm.programs.resume import Resumption
from tinyllm.programs.run_plan import RunPlan, data_facts, plan
from tinyllm.programs.trainer_builder import make_trainer
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.directory import FollowedRunDir, RunDir
from tinyllm.runs.metrics_log import finite
from tinyllm.training.callbacks import Outcome
from tinyllm.training.trainer import Trainer
from tinyllm.utils.device import deterministic, keep_freed_memory
from tinyllm.utils.stop_signal import StopRequest, listening


def train(cfg: DictConfig, invocation: Invocation, resumption: Resumption | None) -> int:
    """Train as the configuration says; returns the exit code.

    Raises:
        UserError: something does not fit; wherever it can be known by then, before anything is written.
    """
    planned = plan(cfg, invocation, resumption)
    if planned.is_complete:
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
            with suppress(Exception):  # a disk that is full, memory that is gone: the first error is the one to tell
                run_dir.write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
        run_dir.write_status(outcome.status, result=asdict(replace(outcome, metrics=finite(outcome.metrics))))
        return 128 + Signals[outcome.reason] if outcome.reason.startswith("SIG") else 0


def agree(planned: RunPlan) -> None:
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


def open_run_dir(planned: RunPlan) -> RunDir | FollowedRunDir:
    """The run's directory: rank 0 makes it, the others are told where it is."""
    made: list[RunDir] = []

    def make() -> str:
        made.append(RunDir(planned.path, new=planned.is_new))
        checkpoints.clean(made[0].checkpoints)
        return str(made[0].path)

    path = planned.strategy.on_rank_zero(make)
    return made[0] if made else FollowedRunDir(Path(path))


def execute(planned: RunPlan, run_dir: RunDir | FollowedRunDir, stop: StopRequest) -> Outcome:
    """Build what the plan needs, train, and tell how it ended.

    Raises:
        RankError: with several ranks, what ended this one.
    """
    trained: list[Trainer] = []
    with ExitStack() as stack:
        try:
            trained.append(trainer := make_trainer(planned, run_dir, stop, stack))
            with trainer.profiler:
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
