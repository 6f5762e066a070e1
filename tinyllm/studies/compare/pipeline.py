"""A comparison carried out: tuning, seeds, runs, measurements, figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.studies.compare import seed_planning as needed
from tinyllm.studies.compare import timing as clock
from tinyllm.studies.compare.composed_arms import ComposedArm, recompose
from tinyllm.studies.compare.measurements import Measured, decode_speed
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.results import Arm, Run
from tinyllm.studies.compare.run_ledger import FAILED, FINISHED, MISSING, is_finished, last_value, result_of, speed_of
from tinyllm.studies.compare.run_pool import DeviceSlots, Job, reason, run_all
from tinyllm.studies.compare.tuning import Tuning, best_of, trials_of
from tinyllm.studies.compare.verdicts import UNITS
from tinyllm.utils.stop_signal import StopRequest

RUNS, TUNE, TIMING = "runs", "tune", "timing"


class Stopped(Exception):
    """A signal asked for the end; what is finished stays, and the same command goes on."""


@dataclass(kw_only=True)
class Comparison:
    """The runs of a study.

    Args:
        directory: the study's.
        where: how many runs go on at once.
        metric: what the arms are compared by.
        screen: shows what happens.
    """

    directory: Path
    arms: Sequence[ComposedArm]
    reference: ComposedArm
    where: DeviceSlots
    stop: StopRequest
    metric: str
    flags: Sequence[str]
    config_dir: str | None
    allow: frozenset[Option]
    screen: Screen
    codes: dict[Path, int] = field(default_factory=dict)
    """Exit codes of the runs that were started and did not finish, by run directory."""

    def __post_init__(self) -> None:
        self.measured = Measured(self.directory)
        self.say = self.screen.say

    def time_arms(self, minutes: float) -> None:
        """Measure how many tokens per second each arm trains on, one arm after the other, several times in turn.

        What was measured is kept, so it is done once per study.

        Raises:
            UserError: an arm does not run.
        """
        seconds = clock.seconds_of_a_round(minutes)
        names = {arm.run_name(arm.cfg.seed): arm for arm in self.arms}
        missing = {name: arm for name, arm in names.items() if self.measured.get("tokens_per_s", name) is None}
        jobs: dict[str, list[Job]] = {name: [] for name in missing}
        for number in range(1, clock.ROUNDS + 1):
            for name, arm in missing.items():
                path = self.directory / TIMING / f"{name}_{number}"
                settings = clock.without_evaluation(arm.settings(arm.cfg.seed), seconds)
                jobs[name].append(Job(label=arm.name, path=path, settings=settings, flags=self.flags))
        if missing:
            self.say(f"measuring the speed of {len(missing)} arms, {clock.ROUNDS} times {seconds:.0f} s each, in turn")
        self._run([job for turn in zip(*jobs.values(), strict=True) for job in turn], DeviceSlots())
        for name, arm in names.items():
            if name in missing:
                self.measured.put("tokens_per_s", name, statistics.median(self._speed(job) for job in jobs[name]))
            arm.tokens_per_s = self.measured.get("tokens_per_s", name)

    def _speed(self, job: Job) -> float:
        speed = speed_of(job.path)
        if speed is None:
            hint = reason(job, self.codes.get(job.path, 0))
            raise UserError("the speed of an arm cannot be measured", file=job.label, hint=hint)
        return speed

    def tune(self, tuning: Tuning) -> None:
        """Give every arm its trials, and the value that did best.

        Raises:
            UserError: all trials of an arm failed.
        """
        jobs = {}
        for arm in self.arms:
            path = self.directory / TUNE / arm.run_name(arm.cfg.seed)
            jobs[arm.name] = tuning.job(arm.name, path, arm.overrides, arm.cfg, self.flags)
        missing = [job for job in jobs.values() if not (self._tried(job.path, tuning) >= tuning.trials)]
        if missing:
            self.say(f"tuning {tuning.key}: {tuning.trials} trials for each of {len(self.arms)} arms")
        self._run(missing, self.where)
        for arm in self.arms:
            arm.trials = trials_of(jobs[arm.name].path, tuning.key)
            best = best_of(arm.trials, tuning.key)
            if best is None:
                hint = f"see {jobs[arm.name].log}"
                raise UserError("all trials of an arm failed", file=arm.name, hint=hint)
            arm.tuned = {tuning.key: best}
            arm.set(tuning.key, best)
            recompose(arm, config_dir=self.config_dir)
            self.say(f"  {arm.name}: {tuning.key}={best:.4g}" if isinstance(best, float) else f"  {arm.name}: {best}")

    @staticmethod
    def _tried(path: Path, tuning: Tuning) -> int:
        return sum(one["value"] is not None for one in trials_of(path, tuning.key))

    def job(self, arm: ComposedArm, seed: int) -> Job:
        """One run."""
        path = self.directory / RUNS / arm.run_name(seed)
        return Job(label=f"{arm.name}, seed {seed}", path=path, settings=arm.settings(seed), flags=self.flags)

    def train(self, arms: Sequence[ComposedArm], seeds: Sequence[int]) -> None:
        """Train what is missing, seed by seed, so that what is there is always comparable.

        Raises:
            UserError: a run directory was changed by hand.
        """
        jobs = [self.job(arm, seed) for seed in seeds for arm in arms]
        missing = [job for job in jobs if not is_finished(job.path)]
        if len(jobs) > len(missing):
            self.say(f"{len(jobs) - len(missing)} of {len(jobs)} runs are there already")
        self._run(missing, self.where, numbered=True)

    def runs(self, arms: Sequence[ComposedArm], seeds: Sequence[int]) -> list[Run]:
        """What the runs have left."""
        found = []
        for arm in arms:
            for seed in seeds:
                job = self.job(arm, seed)
                command = ["python", "-m", "tinyllm.train", *job.command]
                found.append(
                    result_of(
                        job,
                        arm=arm.name,
                        seed=seed,
                        metric=self.metric,
                        beside=self.directory,
                        codes=self.codes,
                        command=command,
                    )
                )
        return found

    def decide_seeds(self, *, effect: float, max_minutes: float | None) -> tuple[int, str]:
        """Train a pilot with seeds of its own, and say how many seeds are needed to see the effect."""
        other = next(arm for arm in self.arms if arm is not self.reference)
        pair, first = [self.reference, other], int(self.reference.cfg.seed) + needed.FIRST_SEED
        pilot = range(first, first + needed.PILOT)
        self.say(f"pilot: {needed.PILOT} seeds of {self.reference.name} and {other.name}")
        self.train(pair, pilot)
        runs = self.runs(pair, pilot)
        values = values_of(runs, pair)
        seconds = [run.seconds for run in runs if run.seconds is not None]
        both = sorted(values[other.name].keys() & values[self.reference.name].keys())
        found = needed.plan(
            [values[other.name][seed] - values[self.reference.name][seed] for seed in both],
            effect=effect,
            arms=len(self.arms),
            seconds_per_run=sum(seconds) / len(seconds) / len(self.where) if seconds else 0.0,
            max_minutes=max_minutes,
            unit=UNITS.get(self.metric, self.metric),
        )
        return found.seeds, found.sentence

    def decode_speeds(self, runs: Sequence[Run]) -> dict[str, float]:
        """The speed of generation by arm, measured once for each on its first run that finished."""
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

    def _run(self, jobs: Sequence[Job], where: DeviceSlots, *, numbered: bool = False) -> None:
        """Run jobs; those that failed are remembered."""
        done = 0

        def look(job: Job) -> None:
            self.screen.look(job.label, job.path)

        def ended(job: Job, code: int) -> None:
            nonlocal done
            self.screen.ended(job.label)
            done += 1
            if code:
                self.codes[job.path] = code
            else:
                self.codes.pop(job.path, None)
            if numbered:
                self.say(f"[{done}/{len(jobs)}] {job.label}: {self._outcome(job, code)}")

        try:
            run_all(jobs, where, self.stop, look=look, ended=ended)
        finally:
            self.screen.clear()
        self._check_stop()

    def _outcome(self, job: Job, code: int) -> str:
        if code:
            return f"failed: {reason(job, code)}"
        value, seconds = last_value(job.path, self.metric)
        return f"{self.metric} {value:.4f} in {seconds:.0f} s" if value is not None else "no number"

    def _check_stop(self) -> None:
        if self.stop.signal is not None:
            raise Stopped


def arms_of(comparison: Comparison, speeds: Mapping[str, float], probes: Mapping[str, dict[str, float]]) -> list[Arm]:
    """The arms as the report shows them."""
    return [
        Arm(
            name=arm.name,
            settings=list(arm.choice.settings),
            overrides=arm.overrides,
            solved=arm.solved,
            account=arm.account,
            mismatch=arm.mismatch,
            max_steps=arm.max_steps,
            tokens=arm.max_steps * arm.batch.tokens,
            flops=arm.max_steps * arm.cost.flops_per_step,
            tuned=arm.tuned,
            trials=arm.trials,
            decode_tokens_per_s=speeds.get(arm.name),
            probes=probes.get(arm.name, {}),
        )
        for arm in comparison.arms
    ]


def values_of(runs: Sequence[Run], arms: Sequence[ComposedArm]) -> dict[str, dict[int, float]]:
    """The metric by arm and seed, of the runs that finished."""
    found: dict[str, dict[int, float]] = {arm.name: {} for arm in arms}
    for run in runs:
        if run.value is not None:
            found[run.arm][run.seed] = run.value
    return found


def notes_of(runs: Sequence[Run], arms: Sequence[ComposedArm], tuning: Tuning | None) -> list[str]:
    """What a reader of the figures has to know."""
    notes = [f"{run.arm}, seed {run.seed}, failed and is left out: {run.error}" for run in runs if run.status == FAILED]
    notes += [f"{run.arm}, seed {run.seed}, is missing" for run in runs if run.status == MISSING]
    if tuning is not None:
        notes.append(
            f"{tuning.key} was tuned with {tuning.trials} trials for every arm, on the loss of the validation split"
            " that the arms are compared on, with a seed that is none of theirs"
        )
    edges = [arm.name for arm in arms if tuning and tuning.values and at_edge(arm.trials, arm.tuned, tuning.key)]
    if edges:
        notes.append(
            f"the best value lies at the edge of what was tried: {', '.join(edges)}; a wider range may do better"
        )
    repeated = [arm.name for arm in arms if arm.max_steps * arm.batch.tokens > arm.data.train.n_tokens]
    if repeated:
        notes.append(f"trained on the same text more than once: {', '.join(repeated)}")
    for note in dict.fromkeys(note for arm in arms for note in arm.data.notes):
        notes.append(note)
    return notes


def at_edge(trials: Sequence[dict[str, Any]], tuned: Mapping[str, Any], key: str) -> bool:
    """Whether the chosen number is the smallest or the largest of those tried."""
    numbers = sorted(one[key] for one in trials if isinstance(one[key], float))
    return bool(numbers) and tuned.get(key) in (numbers[0], numbers[-1]) and len(numbers) > 1
