"""Running a pipeline: the stages in processes of their own, in order, and what is measured after each."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.programs.training_process import TrainingProcess
from tinyllm.runs.facts import read_run_json
from tinyllm.studies.compare.pipeline import Stopped
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.run_ledger import is_finished
from tinyllm.studies.compare.run_pool import train
from tinyllm.studies.pipeline.measuring import (
    curve_of,
    measure_arguments,
    measure_file,
    read_result,
    samples_of,
    values_in,
)
from tinyllm.studies.pipeline.plan import RESULT, Chain, PlannedStage
from tinyllm.studies.pipeline.recipe import Measure, Recipe
from tinyllm.studies.pipeline.results import StageResult
from tinyllm.utils.files import remove
from tinyllm.utils.stop_signal import StopRequest
from tinyllm.utils.text import duration

POLL_S = 0.05
GRACE_S = 10.0
"""Seconds that a program other than training has to end after a signal; it has nothing to save."""


class StageFailed(Exception):
    """A stage ended with an error.

    Args:
        stage: its name.
        seed: its seed.
        reason: its error in one line.
        log: its output.
    """

    def __init__(self, stage: str, seed: int, reason: str, log: Path) -> None:
        super().__init__(reason)
        self.stage, self.seed, self.reason, self.log = stage, seed, reason, log


@dataclass(kw_only=True)
class Running:
    """Runs what has not run yet, one process at a time.

    Args:
        directory: of the pipeline.
    """

    recipe: Recipe
    directory: Path
    stop: StopRequest
    screen: Screen
    config_dir: str | None
    allow: frozenset[Option]
    seconds: dict[Path, float] = field(default_factory=dict)
    """How long stages of pairs took that ran now, by directory."""

    def chain(self, chain: Chain) -> list[StageResult]:
        """Run the stages of one seed, and measure after each.

        Raises:
            Stopped: a signal arrived.
            StageFailed: a stage ended with an error.
            UserError: an evaluation failed, or the files of a finished stage were changed.
        """
        return [self._stage(chain, stage) for stage in chain.stages]

    def _stage(self, chain: Chain, stage: PlannedStage) -> StageResult:
        if not has_run(stage):
            self.screen.say(f"{stage.name}: {stage.path}")
            started = time.perf_counter()
            if stage.trains:
                self._train(stage)
            else:
                self._sample_pairs(stage)
            self.seconds[stage.path] = time.perf_counter() - started
            self.screen.say(f"  finished in {duration(self.seconds[stage.path])}")
        values: dict[str, float] = {}
        if stage.trains:
            for measure in self.recipe.measures:
                if stage in chain.measured(measure):
                    values |= self._measured(chain, stage, measure)
        return self._result(stage, values)

    def _train(self, stage: PlannedStage) -> None:
        run = stage.run
        try:
            code = train(run, {}, self.stop, lambda watched: self.screen.watch(stage.name, watched.path))
        finally:
            self.screen.ended(stage.name)
        self._raise_if_stopped()
        if not is_finished(stage.path):
            raise StageFailed(stage.name, stage.seed, run.reason(code), run.log)

    def _sample_pairs(self, stage: PlannedStage) -> None:
        stage.path.mkdir(parents=True, exist_ok=True)
        remove(stage.made)  # without a result, it may be what a killed process left
        log = stage.run.log
        code, reason = self._run(stage.stage.program, [*stage.arguments, "--json"], log=log, output=stage.path / RESULT)
        if code or not has_run(stage):
            raise StageFailed(stage.name, stage.seed, reason, log)

    def _measured(self, chain: Chain, stage: PlannedStage, measure: Measure) -> dict[str, float]:
        """The figures of a measure, from the file of an earlier start or measured now.

        Raises:
            UserError: the evaluation failed.
        """
        file = measure_file(self.directory, chain, stage, measure)
        result = read_result(file)
        if result is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            arguments = measure_arguments(chain, stage, measure)
            code, reason = self._run("evaluate", arguments, log=file.with_suffix(".log"), output=file)
            result = read_result(file)
            if code or result is None:
                raise UserError(f"{measure.name} could not be measured after {stage.name}", file=file, hint=reason)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values_in(result, measure).items())
            self.screen.say(f"  {shown}")
        return values_in(result, measure)

    def _run(self, program: str, arguments: Sequence[str], *, log: Path, output: Path) -> tuple[int, str]:
        """Run a program that has nothing to save when it is stopped; its exit code, and why it failed.

        Raises:
            Stopped: a signal arrived.
        """
        self._raise_if_stopped()
        process = TrainingProcess(arguments, log=log, output=output, fork=True, program=program)
        try:
            while process.poll() is None and self.stop.signal is None:
                time.sleep(POLL_S)
        finally:
            process.stop(grace_s=GRACE_S)
        self._raise_if_stopped()
        code = process.wait()
        return code, process.reason(code) if code else ""

    def _raise_if_stopped(self) -> None:
        if self.stop.signal is not None:
            raise Stopped

    def _result(self, stage: PlannedStage, values: dict[str, float]) -> StageResult:
        program = stage.stage.program
        common: dict[str, Any] = {
            "name": stage.name,
            "program": program,
            "seed": stage.seed,
            "path": str(stage.path.relative_to(self.directory)),
            "command": shlex.join(["python", "-m", f"tinyllm.{program}", *stage.arguments]),
            "values": values,
        }
        if not stage.trains:
            counts = read_result(stage.path / RESULT) or {}
            shown = {name: value for name, value in counts.items() if type(value) in (int, float)}
            nothing: dict[str, Any] = {"steps": None, "tokens": None, "samples": [], "metric": "", "curve": []}
            return StageResult(**common, **nothing, seconds=shown.pop("seconds", None), counts=shown)
        facts = read_run_json(stage.path)["result"]
        metric, curve = curve_of(stage)
        return StageResult(
            **common,
            seconds=float(facts["seconds"]),
            steps=int(facts["step"]),
            tokens=int(facts.get("tokens", 0)) or None,
            samples=samples_of(self.recipe, stage, self.directory, config_dir=self.config_dir, allow=self.allow),
            metric=metric,
            curve=curve,
            counts={},
        )


def has_run(stage: PlannedStage) -> bool:
    """Whether a stage has finished.

    Raises:
        UserError: the files of its run have changed since.
    """
    if stage.trains:
        return is_finished(stage.path)
    return stage.made.is_file() and read_result(stage.path / RESULT) is not None
