"""The command line of a pipeline: its own keys, settings of all stages, and ``stages.<name>.<key>=<value>``."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllm.config.cli.arguments import CommandLine, check_override_grammar
from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError
from tinyllm.studies.pipeline.recipe import REFUSED, value_of
from tinyllm.utils.nested import is_within

OWN_KEYS = ("recipe", "until", "seeds", "dry_run", "out")
"""Keys and groups of the pipeline itself; all others are those of training, and of every stage that trains."""
STAGES = "stages"
PER_STAGE = {
    "init_from": "each stage begins with one before it; stages.<name>.init_from=… changes that",
    "experiment": "stages differ in it; stages.<name>.experiment=… sets that of a stage",
}
"""Settings of training that only single stages can have."""


@dataclass(frozen=True, kw_only=True)
class TypedSettings:
    """The settings of a command line, apart from the pipeline's own.

    Attributes:
        shared: of all stages that train, in Hydra's grammar.
        of_stage: of single stages, by name.
    """

    shared: tuple[str, ...]
    of_stage: dict[str, list[str]]


def read_stages(line: CommandLine) -> tuple[list[str], TypedSettings]:
    """The settings that Hydra composes, without those of single stages, and what is for the stages.

    Raises:
        UserError: a key that no stage, or only a single one, can have, or a multirun.
    """
    if line.multirun:
        hint = "seeds=<number> repeats a recipe with other seeds; compare varies settings"
        raise UserError("flag not supported", file="-m", hint=hint)
    for_hydra: list[str] = []
    of_stage: dict[str, list[str]] = {}
    for setting in line.settings:
        key = key_of(setting)
        if not is_within(key, [STAGES]):
            for_hydra.append(setting)
            continue
        _, name, rest = ([*key.split(".", 2), "", ""])[:3]
        if not name or not rest:
            hint = (
                "settings of a stage are written stages.<name>.<key>=<value>, e.g. stages.tools.trainer.max_steps=900"
            )
            raise UserError("which setting of which stage?", file=setting, hint=hint)
        of_stage.setdefault(name, []).append(f"{rest}={setting.partition('=')[2]}")
    _check_shared(for_hydra)
    for name, settings in of_stage.items():
        of_stage[name] = quote_literals(settings)
        check_override_grammar(of_stage[name], directories=[line.config_dir] if line.config_dir else [])
    shared = [setting for setting in for_hydra if not is_within(key_of(setting), [*OWN_KEYS, "hydra"])]
    return for_hydra, TypedSettings(shared=tuple(shared), of_stage=of_stage)


def _check_shared(settings: Sequence[str]) -> None:
    for setting in settings:
        for key, hint in (REFUSED | PER_STAGE).items():
            if key_of(setting) == key:
                raise UserError("this key cannot be set in a pipeline", key=key, value=value_of(setting), hint=hint)
