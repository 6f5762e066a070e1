"""The runs of a study: timing, tuning, the pilot, training, and measurements on the trained models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from tinyllm.config.learning_rates import followed_rule
from tinyllm.config.targets import Option
from tinyllm.data.batch import TOKENS
from tinyllm.data.run_data import n_tokens
from tinyllm.errors import UserError
from tinyllm.studies.compare import seed_planning, timing
from tinyllm.studies.compare.composed_arms import ComposedArm, recompose
from tinyllm.studies.compare.evaluations import SharedEvaluation
from tinyllm.studies.compare.measurements import Measurements, decode_speed
from tinyllm.studies.compare.plan import RUNS
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Arm, Run
from tinyllm.studies.compare.run_ledger import (
    FAILED,
    FINISHED,
    MISSING,
    is_finished,
    last_value,
    result_of,
    seconds_of,
    speed_of,
)
from tinyllm.studies.compare.run_pool import Environment, PooledRun, run_all
from tinyllm.studies.compare.tuning import Tuning, best_value, is_at_edge, trials_in
from tinyllm.studies.compare.validation import SharedValidation
from tinyllm.studies.compare.verdicts import unit_of
from tinyllm.utils.stop_signal import StopRequest

TUNE, TIMING = "tune", "timing"


class Stopped(Exception):
    """The study was interrupted by a signal; the same command continues it."""


@dataclass(kw_only=True)
class StudyRuns:
    """The runs of a comparison or of a scaling study.

    Args:
        directory: the study's directory.
        slots: the environment of each run that may go on at once.
        metric: the metric to compare the arms by.
        screen: shows the progress.
        validation: the text, or the problems, that finished runs are evaluated on; None: the metric is one that they
            log.
    """

    directory: Path
    arms: Sequence[ComposedArm]
    reference: ComposedArm
    slots: Sequence[Environment]
    stop: StopRequest
    metric: str
    config_dir: str | None
    allow: frozenset[Option]
    screen: Screen
    validation: SharedValidation | SharedEvaluation | None = None
    codes: dict[Path, int] = field(default_factory=dict)
    """Exit codes of the runs that were started and did not finish, by run directory."""
    logged: dict[Path, str] = field(default_factory=dict)
    """The metric that each run logs and is shown by, by run directory."""

    def __post_init__(self) -> None:
        self.measured = Measurements(self.directory)
        self.say = self.screen.say

    @property
    def flags(self) -> list[str]:
        """The flags that every run needs."""
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    def time_arms(self, minutes: float) -> None:
        """Measure the training speed of each arm, several times in turn; once per study, the results are kept.

        Args:
            minutes: the length of a run of the study.

        Raises:
            UserError: an arm does not run.
        """
        seconds = timing.round_seconds(minutes)
        names = {arm.run_name(arm.cfg.seed): arm for arm in self.arms}
        missing = {name: arm for name, arm in names.items() if self.measured.get("tokens_per_s", name) is None}
        rounds = [
            {name: self._timing_run(name, arm, number, seconds) for name, arm in missing.items()}
            for number in range(1, timing.ROUNDS + 1)
        ]
        if missing:
            self.say(f"measuring the speed of {len(missing)} arms, {timing.ROUNDS} times {seconds:.0f} s each, in turn")
        # One at a time: parallel runs would share the machine and be slower than the study's own.
        self._run([run for turn in rounds for run in turn.values()], [{}])
        for name, arm in names.items():
            if name in missing:
                speed = median(self._speed(turn[name]) for turn in rounds)
                self.measured.put("tokens_per_s", name, speed)
            arm.tokens_per_s = self.measured.get("tokens_per_s", name)

    def _timing_run(self, name: str, arm: ComposedArm, number: int, seconds: float) -> PooledRun:
        settings = timing.timing_settings(arm.settings(arm.cfg.seed), seconds)
        path = self.directory / TIMING / f"{name}_{number}"
        return PooledRun(label=arm.name, path=path, settings=settings, flags=self.flags)

    def _speed(self, run: PooledRun) -> float:
        speed = speed_of(run.path)
        if speed is None:
            hint = run.reason(self.codes.get(run.path, 0))
            raise UserError("the speed of an arm cannot be measured", file=run.label, hint=hint)
        return speed

    def tune(self, tuning: Tuning) -> None:
        """Run the trials of every arm, and give each its best value.

        Raises:
            UserError: all trials of an arm failed.
        """
        sweeps = {}
        for arm in self.arms:
            path = self.directory / TUNE / arm.run_name(arm.cfg.seed)
            sweeps[arm.name] = tuning.sweep(arm, path, self.flags)
        missing = [sweep for sweep in sweeps.values() if self._successes(sweep.path, tuning) < tuning.trials]
        if missing:
            self.say(f"tuning {tuning.key}: {tuning.trials} trials for each of {len(self.arms)} arms")
        self._run(missing, self.slots)
        for arm in self.arms:
            arm.trials = trials_in(sweeps[arm.name].path, tuning.key)
            best = best_value(arm.trials, tuning.key, lower_is_better=arm.objective.lower_is_better)
            if best is None:
                hint = f"see {sweeps[arm.name].log}"
                raise UserError("all trials of an arm failed", file=arm.name, hint=hint)
            arm.tuned = {tuning.key: best}
            arm.set(tuning.key, best)
            recompose(arm, config_dir=self.config_dir)
            self.say(f"  {arm.name}: {tuning.key}={f'{best:.4g}' if isinstance(best, float) else best}")

    @staticmethod
    def _successes(path: Path, tuning: Tuning) -> int:
        return sum(trial["value"] is not None for trial in trials_in(path, tuning.key))

    def _training_run(self, arm: ComposedArm, seed: int) -> PooledRun:
        path = self.directory / RUNS / arm.run_name(seed)
        # With an evaluation afterwards: a metric that the run logs itself, for its curve and the progress.
        self.logged[path] = self.metric if self.validation is None else arm.objective.selects
        return PooledRun(label=f"{arm.name}, seed {seed}", path=path, settings=arm.settings(seed), flags=self.flags)

    def train(self, arms: Sequence[ComposedArm], seeds: Sequence[int]) -> None:
        """Train the missing runs, seed by seed, so that an interrupted study has comparable arms.

        Raises:
            UserError: the files of a finished run have changed.
        """
        runs = [self._training_run(arm, seed) for seed in seeds for arm in arms]
        missing = [run for run in runs if not is_finished(run.path)]
        if len(runs) > len(missing):
            self.say(f"{len(runs) - len(missing)} of {len(runs)} runs have finished already")
        self._run(missing, self.slots, numbered=True)

    def results(self, arms: Sequence[ComposedArm], seeds: Sequence[int]) -> list[Run]:
        """The results of the runs, those that failed or are missing included."""
        results = []
        for arm in arms:
            for seed in seeds:
                run = self._training_run(arm, seed)
                code = self.codes.get(run.path)
                metric = self.logged[run.path]
                result = result_of(run, arm=arm.name, seed=seed, metric=metric, study=self.directory, code=code)
                results.append(self._evaluated(result))
        return results

    def _evaluated(self, run: Run) -> Run:
        """The result of a run with its value on the shared text or problems, if there are any."""
        if self.validation is None or run.status != FINISHED:
            return run
        self._check_stop()
        value = self.validation.value(
            self.directory / run.path, self.measured, config_dir=self.config_dir, allow=self.allow
        )
        return replace(run, value=value, records=[run.records[-1] | {self.metric: value}])

    def decide_seeds(self, *, effect: float, max_minutes: float | None) -> seed_planning.Plan:
        """Train a pilot of two arms with seeds of its own, and plan the number of seeds from it."""
        other = next(arm for arm in self.arms if arm is not self.reference)
        pair, first = [self.reference, other], int(self.reference.cfg.seed) + seed_planning.SEED_OFFSET
        seeds = range(first, first + seed_planning.PILOT)
        self.say(f"pilot: {seed_planning.PILOT} seeds of {self.reference.name} and {other.name}")
        self.train(pair, seeds)
        runs = self.results(pair, seeds)
        values = values_of(runs, pair)
        seconds = [run.seconds for run in runs if run.seconds is not None]
        shared = sorted(values[other.name].keys() & values[self.reference.name].keys())
        return seed_planning.plan(
            [values[other.name][seed] - values[self.reference.name][seed] for seed in shared],
            effect=effect,
            arms=len(self.arms),
            seconds_per_run=sum(seconds) / len(seconds) / len(self.slots) if seconds else 0.0,
            max_minutes=max_minutes,
            unit=unit_of(self.metric),
        )

    def decode_speeds(self, runs: Sequence[Run]) -> dict[str, float]:
        """The generation speed of each arm, measured once on its first finished run."""
        speeds = {}
        for arm in self.arms:
            first = next((run for run in runs if run.arm == arm.name and run.status == FINISHED), None)
            if first is None:
                continue
            name = Path(first.path).name
            if self.measured.get("decode_tokens_per_s", name) is None:
                self._check_stop()
                speed = decode_speed(self.directory / first.path, allow=self.allow)
                self.measured.put("decode_tokens_per_s", name, round(speed, 1))
            speed = float(self.measured.get("decode_tokens_per_s", name))
            if speed and math.isfinite(speed):
                speeds[arm.name] = speed
        return speeds

    def _run(self, runs: Sequence[PooledRun], slots: Sequence[Environment], *, numbered: bool = False) -> None:
        """Run everything; remember the exit codes of failures.

        Raises:
            Stopped: a signal came.
        """
        try:
            for number, (run, code) in enumerate(run_all(runs, slots, self.stop, self._watch), 1):
                self.screen.ended(run.label)
                self.codes.pop(run.path, None)
                if code:
                    self.codes[run.path] = code
                if numbered:
                    self.say(f"[{number}/{len(runs)}] {run.label}: {self._outcome(run, code)}")
        finally:
            self.screen.clear()
        self._check_stop()

    def _watch(self, run: PooledRun) -> None:
        self.screen.watch(run.label, run.path)

    def _outcome(self, run: PooledRun, code: int) -> str:
        if code:
            return f"failed: {run.reason(code)}"
        metric = self.logged[run.path]
        value = last_value(run.path, metric)
        return "not finite" if value is None else f"{metric} {value:.4f} in {seconds_of(run.path):.0f} s"

    def _check_stop(self) -> None:
        if self.stop.signal is not None:
            raise Stopped


def arms_of(
    arms: Sequence[ComposedArm], speeds: Mapping[str, float], probes: Mapping[str, dict[str, float]]
) -> list[Arm]:
    """The arms as data for the report."""
    return [
        Arm(
            name=arm.name,
            settings=list(arm.spec.settings),
            overrides=arm.overrides,
            solved=arm.solved,
            account=arm.account,
            mismatch=arm.mismatch,
            max_steps=arm.max_steps,
            tokens=arm.tokens,
            flops=arm.max_steps * arm.cost.flops_per_step,
            tuned=arm.tuned,
            trials=arm.trials,
            decode_tokens_per_s=speeds.get(arm.name),
            probes=probes.get(arm.name, {}),
        )
        for arm in arms
    ]


def values_of(runs: Sequence[Run], arms: Sequence[ComposedArm]) -> dict[str, dict[int, float]]:
    """The metric of the finished runs, by arm and seed."""
    values: dict[str, dict[int, float]] = {arm.name: {} for arm in arms}
    for run in runs:
        if run.value is not None:
            values[run.arm][run.seed] = run.value
    return values


def notes_of(runs: Sequence[Run], arms: Sequence[ComposedArm], tuning: Tuning | None) -> list[str]:
    """Caveats for the report: runs left out, tuning, repeated data."""
    notes = [f"{run.arm}, seed {run.seed}, failed and is left out: {run.error}" for run in runs if run.status == FAILED]
    notes += [f"{run.arm}, seed {run.seed}, is missing" for run in runs if run.status == MISSING]
    if tuning is not None:
        notes.append(
            f"{tuning.key} was tuned with {tuning.trials} trials for every arm, on the validation split that the arms"
            " are compared on, with a seed that is not among theirs"
        )
        edges = [
            arm.name for arm in arms if tuning.values and is_at_edge(arm.trials, tuning.key, arm.tuned[tuning.key])
        ]
        if edges:
            notes.append(
                f"the best value is at the edge of those tried: {', '.join(edges)}; a wider range may do better"
            )
    by_rule: dict[str, list[str]] = {}
    for arm in arms:
        if (rule := followed_rule(arm.cfg)) is not None and "optimizer.lr" not in arm.tuned:
            by_rule.setdefault(str(rule), []).append(f"{rule.rate:g} for {arm.name}")
    notes += [f"peak learning rate by the {rule}: {', '.join(rates)}" for rule, rates in by_rule.items()]
    texts = [arm for arm in arms if arm.objective.reads == TOKENS]
    repeated = [arm.name for arm in texts if arm.tokens > n_tokens(arm.data, "train")]
    if repeated:
        notes.append(f"trained on the same text more than once: {', '.join(repeated)}")
    return [*notes, *dict.fromkeys(note for arm in arms for note in arm.data.notes)]
