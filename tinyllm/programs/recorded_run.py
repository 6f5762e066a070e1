"""A finished run as something to repeat: the command that made it, and the checkpoint to compare with."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.config.compose import compose
from tinyllm.config.grammar import key_of, quote
from tinyllm.config.migrations import former_choices, legacy_defaults
from tinyllm.config.quoting import LITERAL_KEYS, unquoted
from tinyllm.config.saved import saved_settings
from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.errors import UserError, setting
from tinyllm.programs.builders import plain
from tinyllm.runs.checkpoint import Checkpoint, steps_in, verify
from tinyllm.runs.directory import check_free
from tinyllm.runs.facts import compared_settings, differing, first_config, read_run_json
from tinyllm.runs.layout import CHECKPOINTS, CONFIG, FINISHED, INTERRUPTED, OVERRIDES, RUNNING
from tinyllm.runs.seal import check_seal
from tinyllm.utils.nested import flatten, is_within


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run that can be repeated."""

    path: Path
    settings: list[str]
    """The settings of its command line as typed in a shell, without ``run.dir``."""
    flags: list[str]
    steps: int
    """The number of steps to repeat and compare."""
    threads: int
    checkpoint: Checkpoint | None
    """Its checkpoint of step ``steps``; None if that was removed."""

    def command(self, run_dir: Path) -> list[str]:
        """The arguments of a training run that repeats this one in ``run_dir``."""
        return [*self.flags, *self.settings, f"run.dir={run_dir}", f"trainer.stop_after_steps={self.steps}"]


def recorded_run(run: Path, *, steps: int | None = None, config_dir: str | None = None) -> RecordedRun:
    """Read a run directory and check that the run can be repeated.

    Args:
        run: the directory.
        steps: repeat the first ``steps`` steps only; None: all steps of a finished run.
        config_dir: directory of the user's own option files.

    Raises:
        UserError: not a run; still running; failed; resumed with different settings; or its files were changed.
    """
    run_json = read_run_json(run)
    check_free(run)
    n_steps = _steps_to_repeat(run, run_json, steps)
    check_seal(run)
    starts = run_json.get("starts") or []
    config = first_config(run)
    config |= legacy_defaults(config.get)
    _check_one_command(run, starts, config)
    checkpoint = steps_in(run / CHECKPOINTS).get(n_steps)
    return RecordedRun(
        path=run,
        settings=_settings(run, config, world_size=starts[-1]["world_size"], config_dir=config_dir),
        flags=[] if config_dir is None else ["--config-dir", config_dir],
        steps=n_steps,
        threads=int(starts[-1]["threads"]),
        checkpoint=None if checkpoint is None else verify(checkpoint),
    )


def _steps_to_repeat(run: Path, run_json: Mapping[str, Any], steps: int | None) -> int:
    status = run_json.get("status")
    if status == RUNNING:
        hint = f"it was killed; finish it with resume={run}"
        raise UserError("the run never finished", file=run, hint=hint)
    if status not in (FINISHED, INTERRUPTED):
        raise UserError(
            f"nothing to repeat: the run's status is {status}", file=run, hint=str(run_json.get("reason", ""))
        )
    last = int(run_json["result"]["step"])
    if steps is None and status != FINISHED:
        hint = f"--steps {last} compares the steps it has, resume={run} finishes it"
        raise UserError(f"the run was interrupted at step {last}", file=run, hint=hint)
    if steps is not None and not 1 <= steps <= last:
        raise UserError("the run has fewer steps", key="--steps", value=steps, hint=f"between 1 and {last}")
    return last if steps is None else steps


def _check_one_command(run: Path, starts: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Refuse a run that a single command cannot repeat: resumed with different settings or ranks."""
    if not starts or starts[0]["step"] != 0:
        raise UserError("run.json does not record how the run began", file=run, hint="it was made by an older version")
    first = starts[0]
    for start in starts[1:]:
        where = f"the run was resumed at step {start['step']}"
        if start["world_size"] != first["world_size"]:
            hint = f"{start['world_size']} instead of {first['world_size']}; no single command repeats such a run"
            raise UserError(f"{where} with a different number of ranks", file=run, hint=hint)
        # A later version names the options that were the defaults of the version that began the run.
        before, after = ({*former_choices(each["settings"], config.get), *each["settings"]} for each in (first, start))
        if before != after:
            changed = " ".join(sorted(after - before)) or f"without {' '.join(sorted(before - after))}"
            hint = f"{changed}; no single command repeats such a run"
            raise UserError(f"{where} with different settings", file=run, hint=hint)


def _settings(run: Path, config: Mapping[str, Any], *, world_size: int, config_dir: str | None) -> list[str]:
    """The settings that were typed, and those whose defaults have changed since.

    Raises:
        UserError: the files hold no settings of a run, or these do not compose.
    """
    saved = saved_settings(run / OVERRIDES, config=run / CONFIG, config_dir=config_dir)
    saved = [override for override in saved if not is_within(key_of(override), NOT_COMPARED)]
    if config.get("init_from") is not None:
        saved.append(f"init_from={quote(config['init_from'])}")
    if world_size > 1 and config.get("strategy.nproc_per_node", 0) is None:  # it was started by torchrun
        saved.append(f"strategy.nproc_per_node={world_size}")
    typed = [*former_choices(saved, config.get), *unquoted(saved)]
    return [*typed, *changed_defaults(typed, config, config_dir=config_dir)]


def changed_defaults(settings: Sequence[str], config: Mapping[str, Any], *, config_dir: str | None) -> list[str]:
    """Settings that give a run the values it had, where today's defaults differ.

    A value that is refused today, or has no effect, is left out.

    Args:
        settings: the run's settings as typed.
        config: the run's configuration by dotted key.
    """
    today = dict(flatten(plain(compose(*settings, config_dir=config_dir))))
    typed = {key_of(override) for override in settings}
    different = differing(compared_settings(config), compared_settings(today))
    wanted = [
        setting(key, quote(then) if isinstance(then, str) and key not in LITERAL_KEYS else then)
        for key, (then, _) in different.items()
        if key in config and key in today and key not in typed
    ]
    accepted: list[str] = []
    for override in wanted:
        with contextlib.suppress(UserError):
            # One at a time: one refused value must not discard the others.
            compose(*settings, *accepted, override, config_dir=config_dir)
            accepted.append(override)
    return accepted
