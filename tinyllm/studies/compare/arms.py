"""The arms of a comparison: from several values of a key or group, and from a study file."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from tinyllm.config.cli.arguments import CommandLine
from tinyllm.config.grammar import key_of, parse_settings
from tinyllm.config.hydra_errors import explain
from tinyllm.config.option_files import groups
from tinyllm.config.quoting import quote_literals
from tinyllm.config.saved import check_saved
from tinyllm.errors import UserError
from tinyllm.programs.fork_server import start_server
from tinyllm.studies.sweep.job import Job, expand, short_setting
from tinyllm.utils.nested import is_within
from tinyllm.utils.yaml_files import read_yaml

OWN_KEYS = (
    *("study", "question", "reference", "match", "match_by", "tolerance", "budget", "seeds", "effect", "max_minutes"),
    *("metric", "direction", "tune", "tune_trials", "evaluations", "probes", "parallel", "out", "validation"),
    "dry_run",
)
"""Keys and groups of the comparison itself; all others are those of training."""
FILE_KEYS = ("question", "reference", "settings", "arms")
FIXED = {
    "seed": "seeds=<number> repeats every arm; seed=<number> sets the first seed",
    "run.dir": "each run has its own directory below out=<directory>",
    "run.name": "each run has its own directory below out=<directory>",
    "resume": "the same command continues an interrupted comparison",
    "trainer.max_minutes": "budget=minutes gives every arm the same time",
    "trainer.stop_after_steps": "budget.amount sets the length of the runs",
    "trainer.eval_every": "give one number: all arms must be evaluated at the same steps",
}
"""Keys that cannot differ between arms, with what to use instead."""
REFUSED = ("run.dir", "run.name", "resume", "trainer.max_minutes", "trainer.stop_after_steps")
"""Keys that cannot be set at all."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """The name and settings of an arm, not yet composed."""

    name: str
    settings: tuple[str, ...]
    """What distinguishes the arm, in Hydra's grammar, literal values quoted."""


@dataclass(frozen=True, kw_only=True)
class ArmSet:
    """The arms of a command line and the settings they share."""

    shared: tuple[str, ...]
    """The settings of all arms, and those of the comparison itself."""
    specs: tuple[ArmSpec, ...]

    def settings_of(self, spec: ArmSpec, *, without: Collection[str] = ()) -> list[str]:
        """All settings of an arm; its own override the shared ones.

        Args:
            without: keys and groups to leave out, with everything below them.
        """
        own = {key_of(setting) for setting in spec.settings}
        shared = [setting for setting in self.shared if key_of(setting) not in own]
        return [setting for setting in (*shared, *spec.settings) if not is_within(key_of(setting), without)]


def read_arms(line: CommandLine) -> ArmSet:
    """The arms of a command line, those of its study file included.

    Raises:
        UserError: fewer than two arms, duplicate arms, a key that cannot differ, an invalid study file.
    """
    settings: Sequence[str] = line.settings
    files = [str(override.value()) for override in parse_overrides(settings) if override.key_or_group == "study"]
    named: dict[str, list[str]] = {"": []}
    if files:
        study = read_study(Path(files[0]), config_dir=line.config_dir)
        named = study["arms"] or named
        facts = quote_literals(f"{key}={study[key]}" for key in ("question", "reference") if study[key])
        settings = [*facts, *study["settings"], *settings]
    overrides = parse_overrides(settings)
    _check_keys(overrides)
    shared, jobs = expand_arms(overrides)
    specs = [
        ArmSpec(name=" ".join(filter(None, (name, arm_name(job.swept)))), settings=(*settings, *job.swept))
        for (name, settings), job in itertools.product(named.items(), jobs)
    ]
    _check_specs(specs)
    return ArmSet(shared=shared, specs=tuple(specs))


def prepare_arms(line: CommandLine) -> tuple[list[str], ArmSet]:
    """The settings that Hydra composes, those of the first arm, and all arms for the program.

    Starts the server of the runs, whose imports take as long as those of the program and composing the arms.
    """
    arms = read_arms(line)
    if "dry_run" not in map(key_of, arms.shared):
        start_server()
    return arms.settings_of(arms.specs[0]), arms


def parse_overrides(settings: Iterable[str]) -> list[Override]:
    """Parse settings in Hydra's grammar.

    Raises:
        UserError: a setting that is not in the grammar.
    """
    settings = list(settings)
    with explain(settings):
        return parse_settings(settings)


def expand_arms(overrides: Iterable[Override]) -> tuple[tuple[str, ...], list[Job]]:
    """The settings with a single value, and a job for each combination of the others. The last value of a key wins."""
    jobs = expand({override.get_key_element(): override for override in overrides}.values())
    varied = {key_of(setting) for setting in jobs[0].swept}
    return tuple(setting for setting in jobs[0].overrides if key_of(setting) not in varied), jobs


def _check_keys(overrides: Iterable[Override]) -> None:
    """Refuse keys that a comparison cannot vary, or not even set.

    Raises:
        UserError: there is one.
    """
    for override in overrides:
        key = override.key_or_group
        value = str(override.input_line).partition("=")[2]
        if key in REFUSED:
            raise UserError("this key cannot be set in a comparison", key=key, value=value, hint=FIXED[key])
        if not override.is_sweep_override():
            continue
        if is_within(key, OWN_KEYS):
            hint = "give one value for the whole comparison"
            raise UserError("the key cannot differ between arms", key=key, value=value, hint=hint)
        for name, hint in FIXED.items():
            if is_within(key, [name]):
                raise UserError("the key cannot differ between arms", key=key, value=value, hint=hint)


def _check_specs(specs: Sequence[ArmSpec]) -> None:
    """Check that there is something to compare.

    Raises:
        UserError: fewer than two arms, or two arms with the same name or settings.
    """
    if len(specs) < 2:
        hint = "give a key or group several values, e.g. attn=mha,gqa, or study=<file> with arms"
        raise UserError("nothing to compare", file=specs[0].name or "one arm", hint=hint)
    for field in ("name", "settings"):
        seen: set[Any] = set()
        for spec in specs:
            value = getattr(spec, field)
            if value in seen:
                raise UserError("duplicate arm", file=spec.name, hint=f"two arms have the same {field}; remove one")
            seen.add(value)


def arm_name(settings: Sequence[str]) -> str:
    """A short name for the settings of an arm.

    For a group, its option; for any other key, ``key=value``, with the key shortened to its last part if that is
    unambiguous.
    """
    lasts = [key_of(setting).rpartition(".")[2] for setting in settings]
    words = []
    for setting, last in zip(settings, lasts, strict=True):
        key = key_of(setting)
        value = short_setting(setting).partition("=")[2]
        words.append(value if key in groups() else f"{last if lasts.count(last) == 1 else key}={value}")
    return " ".join(words)


def read_study(file: Path, *, config_dir: str | None = None) -> dict[str, Any]:
    """Read a study file.

    All keys are optional: ``question``, ``reference``, ``settings`` (a list of settings for all arms) and ``arms`` (a
    list of settings by name).

    Raises:
        UserError: the file does not exist or is invalid.
    """
    if file.is_dir():
        file = file / "study.yaml"
    if not file.is_file():
        raise UserError("no such study", file=file, hint="experiments/<study>/study.yaml with arms: {name: [settings]}")
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise UserError("not a study file", file=file, hint=f"its keys are {', '.join(FILE_KEYS)}")
    unknown = sorted(set(content) - set(FILE_KEYS))
    if unknown:
        raise UserError("unknown key", key=str(unknown[0]), file=file, hint=f"one of {', '.join(FILE_KEYS)}")
    arms, shared = content.get("arms") or {}, content.get("settings") or []
    lists = [("settings", shared), *(arms.items() if isinstance(arms, dict) else [("arms", None)])]
    for name, settings in lists:
        if not isinstance(settings, list) or not all(isinstance(setting, str) for setting in settings):
            hint = "a list of settings, e.g. [attn=mla, model.block.attn.kv_latent_dim=64]"
            raise UserError("not a list of settings", key=str(name), file=file, hint=hint)
        for_all = settings is shared
        what = f"not a setting for {'all arms' if for_all else f'the arm {name}'}"
        check_saved(quote_literals(settings), file=file, what=what, config_dir=config_dir, several=for_all)
    return {
        "question": content.get("question"),
        "reference": content.get("reference"),
        "settings": quote_literals(shared),
        "arms": {str(name): quote_literals(settings) for name, settings in arms.items()},
    }
