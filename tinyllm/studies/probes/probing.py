"""From a composition to its accuracy on a synthetic task: the trainer of every run, on batches that are drawn."""

import copy
import inspect
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.targets import Option, resolve_target, walk_nodes
from tinyllm.errors import UserError
from tinyllm.optim.ema import EMA, Average
from tinyllm.programs.builders import build_model, build_optimizer, build_schedule, plain
from tinyllm.runs.metrics_log import Log
from tinyllm.studies.probes.results import Probe, Shelf, fingerprint, score
from tinyllm.studies.probes.stream import batches_to_test, batches_to_train, right_answers
from tinyllm.studies.probes.task import Task, check_disjoint
from tinyllm.training.batch_plan import plan_batch
from tinyllm.training.callbacks import Callback
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.distributed.strategy import SingleProcess
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.state import TrainState
from tinyllm.training.trainer import Settings, Trainer
from tinyllm.utils.device import autocast, deterministic, keep_freed_memory, pick_device, pick_precision
from tinyllm.utils.seeds import seed_globals
from tinyllm.utils.stop_signal import StopRequest

TRAINER = (
    *("max_steps", "batch_size", "grad_accum_steps", "grad_clip", "deterministic", "activation_checkpointing"),
    "nonfinite",
)
"""What a probe reads of ``trainer``, beside device and precision."""


class Messages(Callback):
    """Shows what the trainer has to say, and nothing else."""

    def on_message(self, text: str) -> None:
        print(text, file=sys.stderr)


def tasks_of(cfg: DictConfig, *, allow: frozenset[Option] = frozenset()) -> dict[str, Task]:
    """The tasks of a composition by name, checked against what else it says.

    Raises:
        UserError: there is none, a size that a task refuses, or one too small or too long.
    """
    nodes = plain(cfg.tasks) if cfg.get("tasks") else {}
    if not nodes:
        raise UserError("nothing to train on", key="tasks", value="[]", hint="name one task or several")
    tasks: dict[str, Task] = {name: build(node, path=f"tasks.{name}", allow=allow) for name, node in nodes.items()}
    trained = cfg.trainer.max_steps * cfg.trainer.batch_size * (cfg.trainer.grad_accum_steps or 1)
    for name, task in tasks.items():
        for test in task.tests().values():
            if test.seq_len == task.seq_len:  # sequences of different lengths are different
                check_disjoint(test, trained=trained, tested=cfg.examples, key=f"tasks.{name}")
    return tasks


def longest(task: Task) -> int:
    """Positions of its longest sequence, in training and test."""
    return max(task.seq_len, *(test.seq_len for test in task.tests().values()))


def fitted(cfg: DictConfig, name: str, task: Task, *, max_seq_len: int | None) -> DictConfig:
    """The composition with the vocabulary and the context that a task asks for.

    Args:
        max_seq_len: the context that was asked for; None: as long as the task's longest sequence.

    Raises:
        UserError: the task has longer sequences.
    """
    needed = longest(task)
    if max_seq_len is not None and max_seq_len < needed:
        hint = f"tasks.{name} has sequences of {needed}; leave it out, or make the task shorter"
        raise UserError("context too short for the task", key="model.max_seq_len", value=max_seq_len, hint=hint)
    cfg = copy.deepcopy(cfg)
    cfg.model.max_seq_len = max_seq_len or needed
    cfg.model.vocab_size = None
    return cfg


class Trials:
    """The probes of one composition: each task, with each seed.

    Everything that can be known before training is checked here.

    Args:
        cfg: a composition of ``conf/probe.yaml``.
        typed: keys that were named; of the context only a named one counts, else a task has the one it needs.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: something does not go together.
    """

    def __init__(self, cfg: DictConfig, *, typed: frozenset[str], allow: frozenset[Option]) -> None:
        self.allow = allow
        self.tasks = tasks_of(cfg, allow=allow)
        self.seeds = range(cfg.seed, cfg.seed + cfg.seeds)
        asked = cfg.model.max_seq_len if "model.max_seq_len" in typed else None
        self.fitted = {name: fitted(cfg, name, task, max_seq_len=asked) for name, task in self.tasks.items()}
        pick_device(cfg.trainer.device)
        for name, task in self.tasks.items():
            sketch = build_model(
                self.fitted[name], vocab_size=task.vocab_size, seed=0, device=torch.device("meta"), allow=allow
            )
            build_optimizer(self.fitted[name], sketch, allow=allow)
        build_schedule(cfg, n_steps=cfg.trainer.max_steps, allow=allow)

    def run(self, shelf: Shelf) -> Iterator[tuple[Probe, bool]]:
        """Each result, and whether the shelf had it; what it does not have is put there.

        Raises:
            UserError: a training does not stay finite.
        """
        for name, task in self.tasks.items():
            cfg = self.fitted[name]
            for seed in self.seeds:
                settings = settings_of(cfg, name, seed)
                key = fingerprint(settings, extra=foreign_sources(settings, name, self.allow))
                found = known = shelf.find(name, seed, key)
                if found is None:
                    found = measure(cfg, name, task, seed=seed, allow=self.allow)
                    shelf.put(found, settings, key)
                yield found, known is not None


def settings_of(cfg: DictConfig, name: str, seed: int) -> dict[str, Any]:
    """All that a probe's result follows from, but the code."""
    device = pick_device(cfg.trainer.device)
    whole = plain(cfg)
    return {
        **{part: whole[part] for part in ("model", "optimizer", "schedule", "loss", "ema", "examples")},
        "trainer": {key: whole["trainer"][key] for key in TRAINER},
        "device": device.type,
        "precision": pick_precision(cfg.trainer.precision, device),
        "torch": torch.__version__,
        "task": whole["tasks"][name],
        "seed": seed,
    }


def foreign_sources(settings: Mapping[str, Any], task: str, allow: frozenset[Option]) -> set[Path]:
    """The source files of classes that are not ours."""
    whole = {name: node for name, node in settings.items() if name != "task"} | {"tasks": {task: settings["task"]}}
    nodes = [(path, node) for path, node in walk_nodes(whole, "") if not node["_target_"].startswith("tinyllm.")]
    classes = (resolve_target(node, path=path, extra=allow) for path, node in nodes)
    files = (inspect.getsourcefile(one) for one in classes)
    return {Path(file) for file in files if file is not None}


def measure(cfg: DictConfig, name: str, task: Task, *, seed: int, allow: frozenset[Option]) -> Probe:
    """Train on a task and test.

    Raises:
        UserError: it does not stay finite.
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
                shares = right_answers(model, batches, device=device, autocast=in_autocast)
                scores[name + suffix] = score(shares, chance=test.chance, questions=test.questions)
    counts = model.parameter_counts()
    return Probe(
        task=name,
        seed=seed,
        scores=scores,
        steps=cfg.trainer.max_steps,
        parameters=counts.total - counts.embedding,
        seconds=time.perf_counter() - began,
    )


def make_trainer(cfg: DictConfig, task: Task, *, seed: int, device: torch.device, allow: frozenset[Option]) -> Trainer:
    """The trainer of every run, with drawn batches and without a directory."""
    asked = cfg.trainer
    precision = pick_precision(cfg.trainer.precision, device)
    batch = plan_batch(
        batch_size=asked.batch_size,
        grad_accum_steps=asked.grad_accum_steps,
        total_batch_tokens=None,
        seq_len=task.seq_len,
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    seed_globals(seed)
    model = build_model(cfg, vocab_size=task.vocab_size, seed=seed, device=device, allow=allow)
    optimizer, _ = build_optimizer(cfg, model, allow=allow)
    averaging = plain(cfg.ema)
    objective = NextToken(
        model,
        chunk_tokens=None if cfg.loss.chunk_tokens == "auto" else cfg.loss.chunk_tokens,
        label_smoothing=cfg.loss.label_smoothing,
        z_loss=cfg.loss.z_loss,
    )
    return Trainer(
        state=TrainState(
            model=model,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
            average=EMA(model, **averaging) if averaging.pop("enabled") else Average(),
            strategy=SingleProcess(),
        ),
        objective=objective,
        forward=objective,
        schedule=build_schedule(cfg, n_steps=asked.max_steps, allow=allow),
        settings=Settings(
            seed=seed,
            max_steps=asked.max_steps,
            max_minutes=None,
            stop_after_steps=None,
            grad_clip=asked.grad_clip,
            log_every=0,
            eval_every=0,
            sample_every=0,
            checkpoint_every=0,
            nonfinite_action=asked.nonfinite.action,
            nonfinite_patience=asked.nonfinite.patience,
        ),
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
        prepare=lambda: None,
        profiler=NoProfiler(),
        peak_flops=None,
        run_dir=Path(),
    )
