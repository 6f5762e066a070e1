"""The trials of one composition (each task with each seed): checked first, then run, with results kept on disk."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.compose import compose
from tinyllm.config.quoting import unquoted
from tinyllm.config.targets import Option, options_of, resolve_target, walk_nodes
from tinyllm.errors import UserError
from tinyllm.programs.builders import build_model, build_optimizer, build_schedule, plain
from tinyllm.studies.probes.arms import TRAINER, parts_of
from tinyllm.studies.probes.probing import measure
from tinyllm.studies.probes.results import Probe, ResultCache, fingerprint
from tinyllm.studies.probes.table import Row
from tinyllm.studies.probes.task import Task, check_disjoint
from tinyllm.utils.device import pick_device, pick_precision


class Trials:
    """The trials of one composition. Everything that can be checked before training is checked here.

    Args:
        cfg: a composition of ``conf/probe.yaml``.
        typed: keys named on the command line. A typed ``model.max_seq_len`` is kept; otherwise each task gets the
            context it needs.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: the settings do not fit together.
    """

    def __init__(self, cfg: DictConfig, *, typed: frozenset[str], allow: frozenset[Option]) -> None:
        self.allow = allow
        self.tasks = tasks_of(cfg, allow=allow)
        self.seeds = range(cfg.seed, cfg.seed + cfg.seeds)
        max_seq_len = cfg.model.max_seq_len if "model.max_seq_len" in typed else None
        self.configurations = {
            name: for_task(cfg, name, task, max_seq_len=max_seq_len) for name, task in self.tasks.items()
        }
        pick_device(cfg.trainer.device)  # raises if it does not exist
        meta = torch.device("meta")
        for name, task in self.tasks.items():
            task_cfg = self.configurations[name]
            model = build_model(task_cfg, vocab_size=task.vocab_size, seed=0, device=meta, allow=allow)
            build_optimizer(task_cfg, model, allow=allow)
        build_schedule(cfg, n_steps=cfg.trainer.max_steps, allow=allow)

    def run(self, cache: ResultCache) -> Iterator[tuple[Probe, bool]]:
        """Yield each result and whether it came from the cache; new results are added to the cache.

        Raises:
            UserError: a training run diverges.
        """
        for name, task in self.tasks.items():
            cfg = self.configurations[name]
            for seed in self.seeds:
                settings = settings_of(cfg, name, seed)
                key = fingerprint(settings, extra=foreign_sources(settings, name, self.allow))
                cached = cache.find(name, seed, key)
                result = cached or measure(cfg, name, task, seed=seed, allow=self.allow)
                if cached is None:
                    cache.put(result, settings, key)
                yield result, cached is not None


def tasks_of(cfg: DictConfig, *, allow: frozenset[Option] = frozenset()) -> dict[str, Task]:
    """Build the tasks of a composition, by name.

    Raises:
        UserError: there is no task, a task refuses a size, or its test set would overlap its training set.
    """
    nodes = plain(cfg.tasks) if cfg.get("tasks") else {}
    if not nodes:
        raise UserError("nothing to train on", key="tasks", value="[]", hint="name one or more tasks")
    tasks: dict[str, Task] = {name: build(node, path=f"tasks.{name}", allow=allow) for name, node in nodes.items()}
    trained = cfg.trainer.max_steps * cfg.trainer.batch_size * (cfg.trainer.grad_accum_steps or 1)
    for name, task in tasks.items():
        for test in task.tests().values():
            if test.seq_len == task.seq_len:  # sequences of different lengths cannot be equal
                check_disjoint(test, trained=trained, tested=cfg.examples, key=f"tasks.{name}")
    return tasks


def longest(task: Task) -> int:
    """Length of the task's longest sequence, in training and test."""
    return max(task.seq_len, *(test.seq_len for test in task.tests().values()))


def for_task(cfg: DictConfig, name: str, task: Task, *, max_seq_len: int | None) -> DictConfig:
    """The composition with the vocabulary and the context of a task.

    Args:
        max_seq_len: a context set by the user; None: that of the task's longest sequence.

    Raises:
        UserError: the task has longer sequences than ``max_seq_len``.
    """
    needed = longest(task)
    if max_seq_len is not None and max_seq_len < needed:
        hint = f"tasks.{name} needs sequences of {needed} tokens; leave model.max_seq_len out, or make the task shorter"
        raise UserError("context too short for the task", key="model.max_seq_len", value=max_seq_len, hint=hint)
    cfg = copy.deepcopy(cfg)
    cfg.model.max_seq_len = max_seq_len or needed
    cfg.model.vocab_size = None  # the model gets the task's
    return cfg


def settings_of(cfg: DictConfig, name: str, seed: int) -> dict[str, Any]:
    """Everything besides the code that determines the result of a trial."""
    device = pick_device(cfg.trainer.device)
    whole = plain(cfg)
    return {
        **{part: whole[part] for part in ("model", "objective", "optimizer", "schedule", "ema", "examples")},
        "trainer": {key: whole["trainer"][key] for key in TRAINER},
        "device": device.type,
        "precision": pick_precision(cfg.trainer.precision, device),
        "torch": torch.__version__,
        "task": whole["tasks"][name],
        "seed": seed,
    }


def foreign_sources(settings: Mapping[str, Any], task: str, allow: frozenset[Option]) -> set[Path]:
    """Source files of the user's own classes in a composition."""
    whole = {name: node for name, node in settings.items() if name != "task"} | {"tasks": {task: settings["task"]}}
    nodes = [(path, node) for path, node in walk_nodes(whole, "") if not node["_target_"].startswith("tinyllm.")]
    classes = (resolve_target(node, path=path, extra=allow) for path, node in nodes)
    files = map(inspect.getsourcefile, classes)
    return {Path(file) for file in files if file is not None}


def probe_accuracies(
    settings: Iterable[str],
    tasks: Sequence[str],
    *,
    out: str,
    more: Sequence[str] = (),
    config_dir: str | None = None,
) -> dict[str, float]:
    """Accuracy of a composition by test: ``{"recall": 0.99, "length@2x": 0.71, …}``.

    The composition's parts are put into the small model of ``conf/probe.yaml``; sizes, data and training length are the
    probe's own.

    Args:
        settings: settings of a training run in Hydra's grammar, literal values quoted. Those that do not concern the
            parts are ignored.
        tasks: names of tasks.
        out: directory in which results are cached.
        more: settings of the probe itself, e.g. ``seeds=3``.
        config_dir: additional directory of option files.

    Raises:
        UserError: the parts do not fit together at this size, a task does not exist, or a training run diverges.
    """
    trials = trials_of(settings, tasks, more=more, config_dir=config_dir)
    return Row(arm="", settings=[], probes=[result for result, _ in trials.run(ResultCache(Path(out)))]).accuracies()


def trials_of(
    settings: Iterable[str], tasks: Sequence[str], *, more: Sequence[str] = (), config_dir: str | None = None
) -> Trials:
    """The trials that :func:`probe_accuracies` runs, checked but not trained.

    Raises:
        UserError: the parts do not fit together at this size, or a task does not exist.
    """
    own = (*parts_of(settings), f"tasks=[{','.join(tasks)}]", *more)
    cfg = compose(*unquoted(own), program="probe", config_dir=config_dir)
    allow = options_of(Path(config_dir)) if config_dir else frozenset()
    return Trials(cfg, typed=frozenset(), allow=allow)
