"""The plan of a pipeline: every stage composed, its directory named after everything that its result depends on."""

import glob
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.compose import compose
from tinyllm.config.grammar import key_of, quote
from tinyllm.config.quoting import unquoted
from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.batch import TOKENS
from tinyllm.errors import UserError
from tinyllm.programs.builders import plain
from tinyllm.runs.facts import compared_settings
from tinyllm.runs.provenance import code_fingerprint
from tinyllm.studies.compare.run_pool import PooledRun
from tinyllm.studies.pipeline.costs import StageCost, cost_of
from tinyllm.studies.pipeline.recipe import MARK, TRAIN, Measure, Recipe, Stage, references, value_of
from tinyllm.utils.files import sha256
from tinyllm.utils.nested import flatten, is_within

STAGES = "stages"
"""Folder of the stages' directories."""
PAIRS_FILE, RESULT = "pairs.jsonl", "result.json"
"""What a stage of pairs leaves: the pairs, and what the program says of them."""
FILES = ("path", "val_path", "init_from", "run")
"""Last parts of keys whose values name files that a stage reads."""


@dataclass(kw_only=True)
class PlannedStage:
    """A stage with one seed, ready to run.

    Attributes:
        settings: all of the program's, in Hydra's grammar, without those that say where it writes.
        path: its directory.
        digest: of everything that its result depends on.
        cost: of training; None for a stage of pairs.
    """

    stage: Stage
    seed: int
    cfg: DictConfig
    settings: list[str]
    flags: list[str]
    path: Path
    digest: str
    cost: StageCost | None

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.stage.name

    @property
    def trains(self) -> bool:
        """Whether it makes a run with weights."""
        return self.stage.program == TRAIN

    @property
    def made(self) -> Path:
        """What other stages get of it: the run directory, or the file of pairs."""
        return self.path if self.trains else self.path / PAIRS_FILE

    @property
    def run(self) -> PooledRun:
        """The run of a stage that trains."""
        return PooledRun(label=self.name, path=self.path, settings=self.settings, flags=self.flags)

    @property
    def arguments(self) -> list[str]:
        """The arguments of its program as a user would type them."""
        return self.run.command if self.trains else [*self.flags, *unquoted(self.settings), f"out={self.made}"]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The stages of one seed."""

    seed: int
    stages: list[PlannedStage]

    def filled(self, settings: Iterable[str]) -> list[str]:
        """Settings in which ``@name`` is replaced by what the stage made."""
        return [filled(setting, {stage.name: stage.made for stage in self.stages}) for setting in settings]

    def measured(self, measure: Measure) -> list[PlannedStage]:
        """The stages that a measure is taken after: those that train, from its first one on."""
        names = [stage.name for stage in self.stages]
        first = 0 if measure.since is None else names.index(measure.since)
        return [stage for stage in self.stages[first:] if stage.trains]

    def measure_digest(self, measure: Measure) -> str:
        """A digest of everything that a measure depends on besides the stage that is measured."""
        named = {stage.name: stage.digest for stage in self.stages if stage.name in references(measure.settings)}
        return digest_of({"settings": list(measure.settings), "named": named, "code": code_of_this()})


@dataclass(kw_only=True)
class Planner:
    """Plans the stages of a recipe.

    Args:
        directory: of the pipeline.
        vocabulary: sizes found so far, by stage.
    """

    recipe: Recipe
    directory: Path
    config_dir: str | None
    allow: frozenset[Option]
    vocabulary: dict[str, int] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The flags that every program needs."""
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    def chain(self, seed: int) -> Chain:
        """The stages with a seed.

        Raises:
            UserError: a stage does not compose, or a file that it reads is missing; the message names the stage.
        """
        planned: list[PlannedStage] = []
        for stage in self.recipe.stages:
            try:
                planned.append(self._planned(stage, seed, planned))
            except UserError as error:
                raise naming_stage(error, stage.name) from error
        for measure in self.recipe.measures:
            self._check_measure(measure, Chain(seed=seed, stages=planned))
        return Chain(seed=seed, stages=planned)

    def _planned(self, stage: Stage, seed: int, before: Sequence[PlannedStage]) -> PlannedStage:
        made = {other.name: other.made for other in before}
        known = {str(other.made): other.digest for other in before}
        start = None if stage.init_from is None else str(made.get(stage.init_from, stage.init_from))
        settings = [filled(setting, made) for setting in stage.settings]
        if start is not None:
            settings.append(f"{'init_from' if stage.program == TRAIN else 'run'}={quote(start)}")
        settings = [*(setting for setting in settings if key_of(setting) != "seed"), f"seed={seed}"]
        cfg = compose(*unquoted(settings), program=stage.program, config_dir=self.config_dir)
        if stage.program == TRAIN and not self._reads_tokens(cfg):
            # Pairs and prompts are encoded with the tokenizer of the weights; training refuses one that is chosen.
            shared = {setting for setting in stage.shared if is_within(key_of(setting), ["tokenizer"])}
            settings = [setting for setting in settings if setting not in shared]
            cfg = compose(*unquoted(settings), config_dir=self.config_dir)
        # `run` of a program belongs to where a training run lies, and so is not among the settings compared.
        start_digest = known.get(start or "", start and content_digest(start))
        facts = {"program": stage.program, "code": code_of_this(), "start": start_digest}
        digest = digest_of(facts | inputs_of(cfg, known))
        path = self.directory / STAGES / f"{stage.name}_s{seed}_{digest[:10]}"
        cost = None
        if stage.program == TRAIN:
            vocabulary = self.vocabulary.get(stage.init_from or "")
            cost = cost_of(cfg, vocabulary=vocabulary, allow=self.allow)
            self.vocabulary[stage.name] = cost.vocabulary
        return PlannedStage(
            stage=stage,
            seed=seed,
            cfg=cfg,
            settings=settings,
            flags=self.flags,
            path=path,
            digest=digest,
            cost=cost,
        )

    def _reads_tokens(self, cfg: DictConfig) -> bool:
        """Whether the objective reads tokens, and so a tokenizer is chosen for it."""
        target = resolve_target(plain(cfg.objective), path="objective", extra=self.allow)
        return bool(target.reads == TOKENS)

    def _check_measure(self, measure: Measure, chain: Chain) -> None:
        """Refuse settings that ``evaluate`` does not have, before anything runs.

        Raises:
            UserError: there is one; the message names the measure.
        """
        try:
            compose(*unquoted(chain.filled(measure.settings)), program="evaluate", config_dir=self.config_dir)
        except UserError as error:
            raise naming_stage(error, f"measure {measure.name}") from error


def naming_stage(error: UserError, name: str) -> UserError:
    """The error with the place in the recipe that it comes from."""
    hint = f"{error.hint}; {name}" if error.hint else f"in {name}"
    return UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint)


def filled(setting: str, made: Mapping[str, Path]) -> str:
    """A setting in which ``@name``, or ``@name/file``, is replaced by what the stage made."""
    value = value_of(setting)
    if not value.startswith(MARK):
        return setting
    name, slash, rest = value[1:].partition("/")
    return f"{key_of(setting)}={quote(str(made[name]) + slash + rest)}"


def inputs_of(cfg: DictConfig, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings that a stage's result depends on, and the contents of the files that they name.

    Args:
        known: digests of earlier stages, by the path of what they made.
    """
    values = dict(flatten(plain(cfg)))
    settings = {key: with_digests(value, known) for key, value in compared_settings(values).items()}
    files = {
        key: content_digest(value)
        for key, value in values.items()
        if key.rpartition(".")[2] in FILES and isinstance(value, str) and value not in known
    }
    return {"settings": settings, "files": files}


def with_digests(value: Any, known: Mapping[str, str]) -> Any:
    """A value in which paths of other stages are replaced by their digests: where they lie does not matter."""
    if not isinstance(value, str):
        return value
    for path, digest in known.items():
        if value == path or value.startswith(f"{path}/"):
            return f"{MARK}{digest}{value[len(path) :]}"
    return value


def code_of_this() -> dict[str, str]:
    """What can change every digit of a result besides settings and files."""
    return {"code": code_fingerprint(), "torch": torch.__version__, "python": platform.python_version()}


def digest_of(content: Any) -> str:
    """sha256 of plain containers."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def content_digest(named: str) -> str:
    """sha256 of a file, of all files below a directory, or of those that a pattern matches; "": there is none."""
    path = Path(named).expanduser()
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_of([[file.relative_to(path).as_posix(), sha256(file)] for file in files])
    matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    return digest_of([[file.name, sha256(file)] for file in matched]) if matched else ""
