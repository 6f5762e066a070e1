"""One probe: train a composition on a synthetic task with the regular trainer, then test it."""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.targets import Option
from tinyllm.programs.builders import build_model, build_objective, build_schedule
from tinyllm.programs.trainer_builder import loop_settings, new_state
from tinyllm.runs.metrics_log import Log
from tinyllm.studies.probes.results import Probe, score
from tinyllm.studies.probes.stream import batches_to_test, batches_to_train, correct_shares
from tinyllm.studies.probes.task import Task
from tinyllm.training.batch_plan import plan_batch
from tinyllm.training.callbacks import Callback
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.distributed.strategy import SingleProcess
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.trainer import Trainer
from tinyllm.utils.device import autocast, deterministic, keep_freed_memory, pick_device, pick_precision
from tinyllm.utils.seeds import seed_globals
from tinyllm.utils.stop_signal import StopRequest


class Messages(Callback):
    """Prints the trainer's messages to standard error."""

    def on_message(self, text: str) -> None:
        print(text, file=sys.stderr)


def measure(cfg: DictConfig, name: str, task: Task, *, seed: int, allow: frozenset[Option]) -> Probe:
    """Train a composition on a task and measure its accuracy on the task's tests.

    Raises:
        UserError: the training run diverges.
    """
    began = time.perf_counter()
    device = pick_device(cfg.trainer.device)
    in_autocast = partial(autocast, device, pick_precision(cfg.trainer.precision, device))
    keep_freed_memory()
    with deterministic(cfg.trainer.deterministic, device):
        trainer = make_trainer(cfg, task, seed=seed, device=device, allow=allow)
        trainer.fit()
        model: Any = trainer.state.model
        scores = {}
        with trainer.state.average.applied():
            for suffix, test in task.tests().items():
                batches = batches_to_test(test, seed=seed, examples=cfg.examples, batch_size=cfg.trainer.batch_size)
                shares = correct_shares(model, batches, device=device, autocast=in_autocast)
                scores[name + suffix] = score(shares, chance=test.chance, questions=test.questions)
    counts = model.parameter_counts()
    return Probe(
        task=name,
        seed=seed,
        scores=scores,
        steps=cfg.trainer.max_steps,
        parameters=counts.total - counts.embedding,  # the vocabulary is the task's
        seconds=time.perf_counter() - began,
    )


def make_trainer(cfg: DictConfig, task: Task, *, seed: int, device: torch.device, allow: frozenset[Option]) -> Trainer:
    """The regular trainer on generated batches, without run directory, logs, evaluations and checkpoints."""
    precision = pick_precision(cfg.trainer.precision, device)
    batch = plan_batch(
        batch_size=cfg.trainer.batch_size,
        grad_accum_steps=cfg.trainer.grad_accum_steps,
        total_batch_tokens=None,
        seq_len=task.seq_len,
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    seed_globals(seed)
    model = build_model(cfg, vocab_size=task.vocab_size, seed=seed, device=device, allow=allow)
    state, _ = new_state(cfg, model, SingleProcess(), device=device, precision=precision, allow=allow)
    objective = build_objective(cfg, model, allow=allow)
    max_steps = cfg.trainer.max_steps
    never: dict[str, Any] = {"log_every": 0, "eval_every": 0, "sample_every": 0, "checkpoint_every": 0}
    settings = replace(loop_settings(cfg, max_steps), seed=seed, max_minutes=None, stop_after_steps=None, **never)
    return Trainer(
        state=state,
        objective=objective,
        forward=objective,
        lr_at=build_schedule(cfg, n_steps=max_steps, allow=allow),
        settings=settings,
        batch_plan=batch,
        lengths=Lengths(seq_len=task.seq_len),
        autocast=partial(autocast, device, precision),
        batches=partial(
            batches_to_train,
            task,
            seed=seed,
            start_step=0,
            batch_size=batch.batch_size,
            grad_accum_steps=batch.grad_accum_steps,
        ),
        evaluate=lambda stopping: {},
        sample=lambda step, stopping: "",
        checkpoints=NoCheckpoints(),
        log=Log(),
        events=Messages(),
        stop=StopRequest(),
        warm_up=lambda: None,
        profiler=NoProfiler(),
        peak_flops=None,
        run_dir=Path(),
    )
