"""A run directory as something that can be done again: what it was started with, and what to compare with."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.config.compose import compose
from tinyllm.config.grammar import key_of, quote
from tinyllm.config.migrations import as_it_was
from tinyllm.config.quoting import LITERAL_KEYS, unquoted
from tinyllm.config.saved import saved_settings
from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.errors import UserError, setting
from tinyllm.runs.checkpoint import Checkpoint, steps_in, verify
from tinyllm.runs.directory import check_free
from tinyllm.runs.facts import compared_settings, differing, read_config, read_run_json
from tinyllm.runs.layout import CHECKPOINTS, CONFIG, OVERRIDES, RUNNING
from tinyllm.runs.seal import check_seal
from tinyllm.utils.nested import flatten, is_within


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run that can be done again."""

    path: Path
    settings: list[str]
    """The command line that made it, as one types it, without its directory."""
    flags: list[str]
    steps: int
    """How many of its steps are done and compared."""
    threads: int
    checkpoint: Checkpoint | None
    """Of that step, if it is still there."""

    def command(self, run_dir: Path) -> list[str]:
        """The command line that does it again in ``run_dir``."""
        return [*self.flags, *self.settings, f"run.dir={run_dir}", f"trainer.stop_after_steps={self.steps}"]


def recorded(run: Path, *, steps: int | None = None, config_dir: str | None = None) -> Recorded:
    """What a run directory holds, checked.

    Args:
        run: the directory.
        steps: so many of the first steps; None: all, which a finished run has.
        config_dir: where its own option files lie.

    Raises:
        UserError: no run, one that goes on, has not ended well or was resumed otherwise; files changed or gone.
    """
    facts = read_run_json(run)
    check_free(run)
    done = _steps_done(run, facts, steps)
    check_seal(run)
    starts = facts.get("starts") or []
    _check_one_command(run, starts)
    flags = [] if config_dir is None else ["--config-dir", config_dir]
    return Recorded(
        path=run,
        settings=_settings(run, world_size=starts[-1]["world_size"], config_dir=config_dir),
        flags=flags,
        steps=done,
        threads=int(starts[-1]["threads"]),
        checkpoint=verify(found) if (found := steps_in(run / CHECKPOINTS).get(done)) else None,
    )


def _steps_done(run: Path, facts: Mapping[str, Any], asked: int | None) -> int:
    """How many steps to do.

    Raises:
        UserError: the run has not so many, or none of its own.
    """
    status = facts.get("status")
    if status == RUNNING:
        hint = f"it was killed; end it with resume={run}"
        raise UserError("the run did not end", file=run, hint=hint)
    if status not in ("finished", "interrupted"):
        raise UserError(f"nothing to do again: the run is {status}", file=run, hint=str(facts.get("reason", "")))
    step = int(facts["result"]["step"])
    if asked is None and status != "finished":
        hint = f"--steps {step} compares what it has, resume={run} ends it"
        raise UserError(f"the run was interrupted at step {step}", file=run, hint=hint)
    if asked is not None and not 1 <= asked <= step:
        raise UserError("the run has not so many steps", key="--steps", value=asked, hint=f"between 1 and {step}")
    return step if asked is None else asked


def _check_one_command(run: Path, starts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a run that no single command makes.

    Raises:
        UserError: it was resumed with other settings or on another number of ranks, or its start is not known.
    """
    if not starts or starts[0]["step"] != 0:
        raise UserError("the run's beginning is not recorded", file=run, hint="it was made before there were records")
    first = starts[0]
    for one in starts[1:]:
        where = f"the run was resumed at step {one['step']}"
        if one["world_size"] != first["world_size"]:
            hint = f"{one['world_size']} instead of {first['world_size']}; no single command makes such a run"
            raise UserError(f"{where} on another number of ranks", file=run, hint=hint)
        before, after = set(first["settings"]), set(one["settings"])
        if before != after:
            changed = " ".join(sorted(after - before)) or f"without {' '.join(sorted(before - after))}"
            hint = f"{changed}; no single command makes such a run"
            raise UserError(f"{where} with other settings", file=run, hint=hint)


def _settings(run: Path, *, world_size: int, config_dir: str | None) -> list[str]:
    """The command line of a run: what was typed, and what the configuration has by now other defaults for.

    Raises:
        UserError: the settings are not those of a run, or do not compose.
    """
    saved = saved_settings(run / OVERRIDES, config=run / CONFIG, config_dir=config_dir)
    saved = [one for one in saved if not is_within(key_of(one), NOT_COMPARED)]
    config = read_config(run)
    config |= as_it_was(config.get)
    if config.get("init_from") is not None:
        saved.append(f"init_from={quote(config['init_from'])}")
    if world_size > 1 and config.get("strategy.nproc_per_node", 0) is None:  # torchrun had started it
        saved.append(f"strategy.nproc_per_node={world_size}")
    typed = unquoted(saved)
    return [*typed, *pins(typed, config, config_dir=config_dir)]


def pins(settings: Sequence[str], config: Mapping[str, Any], *, config_dir: str | None) -> list[str]:
    """Settings that hold a run to its values where today's configuration has others.

    A value that today's check refuses, or that has no effect, is left out.

    Args:
        settings: as one types them.
        config: the leaves of the run's configuration.
    """
    today = dict(flatten(_plain(compose(*settings, config_dir=config_dir))))
    named = {key_of(one) for one in settings}
    others = differing(compared_settings(config), compared_settings(today))
    wanted = [
        _typed(key, then) for key, (then, _) in others.items() if key in config and key in today and key not in named
    ]
    held: list[str] = []
    for one in wanted:
        with contextlib.suppress(UserError):
            compose(*settings, *held, one, config_dir=config_dir)
            held.append(one)
    return held


def _typed(key: str, value: Any) -> str:
    return setting(key, quote(value) if isinstance(value, str) and key not in LITERAL_KEYS else value)


def _plain(cfg: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True)
