"""A recipe: the stages of a pipeline in order, and what is measured after each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import quote_literals
from tinyllm.config.saved import check_saved
from tinyllm.config.suggestions import near
from tinyllm.errors import UserError
from tinyllm.utils.files import is_file_name
from tinyllm.utils.nested import is_within
from tinyllm.utils.yaml_files import read_yaml

TRAIN, PAIRS = "train", "pairs"
PROGRAMS = (TRAIN, PAIRS)
MARK = "@"
"""``@name`` at the beginning of a value stands for what the stage of that name has made."""
REFUSED = {
    "run.dir": "each stage has its own directory below out=<directory>",
    "run.name": "each stage has its own directory below out=<directory>",
    "resume": "the same command continues a pipeline that was interrupted",
    "trainer.max_minutes": "set the length of a stage in steps, so that the same command gives the same result",
    "trainer.stop_after_steps": "until=<stage> ends the pipeline after a stage",
}
"""Settings of training that no stage can have, and what to use instead."""
OF_STAGE = {
    "init_from": "it is a key of the stage: the name of another stage, a directory, or null",
    "seed": "seed=<number> on the command line is the seed of all stages; seeds=<number> repeats the recipe",
    "run": "it is the stage that init_from names",
    "out": "the stage's file lies in its own directory",
}
"""The same, where a stage's list of settings has them."""
BEFORE = "before"
"""Value of ``init_from`` that means the last stage before this one that trains."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A program to run, its settings, and the stage whose model it begins with.

    Attributes:
        settings: in Hydra's grammar, literal values quoted.
        init_from: the name of a stage before it, a run, a checkpoint or a Hugging Face directory; None: random weights.
        shared: those settings that are of all stages.
    """

    name: str
    program: str
    settings: tuple[str, ...]
    init_from: str | None
    shared: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """An evaluation after each stage.

    Attributes:
        settings: of ``python -m tinyllm.evaluate``, in Hydra's grammar.
        shows: metrics of its result, by the name that tables show.
        since: the first stage to measure after; None: from the first one on.
    """

    name: str
    settings: tuple[str, ...]
    shows: Mapping[str, str]
    since: str | None


@dataclass(frozen=True)
class Recipe:
    """Stages in their order, and what is measured after each.

    Attributes:
        settings: of every stage that trains, in Hydra's grammar.
        prompts: texts that the model of each stage continues, or answers once it was trained on conversations.
        chat: settings of ``python -m tinyllm.chat`` for these answers.
    """

    stages: tuple[Stage, ...]
    settings: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    prompts: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(stage.name for stage in self.stages))

    def stage(self, name: str, *, key: str) -> Stage:
        """The stage of a name.

        Args:
            key: the setting that names it, for the message.

        Raises:
            UserError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise no_such_stage(name, [stage.name for stage in self.stages], key=key)

    def with_settings(self, shared: Sequence[str], of_stage: Mapping[str, Sequence[str]]) -> "Recipe":
        """The recipe with the settings of a command line, which win over its own.

        Args:
            shared: of all stages that train, in Hydra's grammar.
            of_stage: of single stages, by name.

        Raises:
            UserError: there is no such stage, or it cannot have the setting.
        """
        for name, settings in of_stage.items():
            self.stage(name, key=f"stages.{name}.{key_of(settings[0])}")
        stages = []
        for stage in self.stages:
            own = list(of_stage.get(stage.name, ()))
            common = [*self.settings, *stage.settings, *shared] if stage.program == TRAIN else stage.settings
            start = [setting for setting in own if key_of(setting) == "init_from"]
            own = [setting for setting in own if key_of(setting) != "init_from"]
            _check_keys(own, place=f"stages.{stage.name}")
            init_from = _typed_start(start[-1]) if start else stage.init_from
            settings = last_of_each_key([*common, *own])
            shared_ones = frozenset({*self.settings, *shared} - {*stage.settings, *own})
            stages.append(replace(stage, settings=settings, init_from=init_from, shared=shared_ones))
        recipe = replace(self, stages=tuple(stages), settings=())
        _check_order(recipe)
        return recipe

    def until(self, name: str | None) -> "Recipe":
        """The recipe up to a stage; None: all of it.

        Raises:
            UserError: there is no such stage.
        """
        if name is None:
            return self
        last = self.stages.index(self.stage(name, key="until"))
        stages = self.stages[: last + 1]
        known = {stage.name for stage in stages}
        measures = tuple(measure for measure in self.measures if measure.since is None or measure.since in known)
        return replace(self, stages=stages, measures=measures)


def make_recipe(
    *,
    stages: Sequence[Mapping[str, Any]],
    settings: Sequence[str] = (),
    measures: Sequence[Mapping[str, Any]] = (),
    prompts: Sequence[str] = (),
    chat: Sequence[str] = (),
) -> Recipe:
    """The recipe that an option file describes.

    Raises:
        UserError: it is none; the message names the place.
    """
    content = {"stages": stages, "settings": settings, "measures": measures, "prompts": prompts, "chat": chat}
    return read_recipe(content, file=Path("recipe"))


def recipe_file(*, path: str) -> Recipe:
    """The recipe in a yaml file with the keys of the recipes in ``conf/recipe``.

    Raises:
        UserError: there is no such file, or it is no recipe.
    """
    file = Path(path)
    if not file.is_file():
        hint = "a yaml file with stages: [{name: …, settings: […]}, …]"
        raise UserError("no such recipe", key="recipe.path", value=path, hint=hint)
    return read_recipe(read_yaml(file, of=dict, what="not a recipe"), file=file)


def read_recipe(content: Mapping[str, Any], *, file: Path) -> Recipe:
    """The recipe that a mapping describes.

    Raises:
        UserError: an unknown key, a stage without a name, two of one name, settings that a stage cannot have, …
    """
    known = ("stages", "settings", "measures", "prompts", "chat")
    _check_known(content, known, file=file, what="recipe")
    listed = content.get("stages")
    if not isinstance(listed, list | tuple) or not listed:
        raise _wrong("no stages", file, "stages", "a list of at least one {name: …, settings: […]}")
    stages: list[Stage] = []
    for number, node in enumerate(listed, start=1):
        stages.append(_stage(node, number, stages, file=file))
    nodes = content.get("measures") or []
    if not isinstance(nodes, list | tuple):
        raise _wrong("not a list of measures", file, "measures", "a list of {name: …, settings: […], shows: {…}}")
    measures = [_measure(node, number, file=file) for number, node in enumerate(nodes, start=1)]
    _check_distinct([*(stage.name for stage in stages)], "stage", file=file)
    _check_distinct([name for measure in measures for name in measure.shows], "column", file=file)
    recipe = Recipe(
        stages=tuple(stages),
        settings=_settings(content.get("settings"), file=file, place="settings"),
        measures=tuple(measures),
        prompts=tuple(_texts(content.get("prompts"), file=file, place="prompts")),
        chat=_settings(content.get("chat"), file=file, place="chat", refused=()),
    )
    _check_order(recipe)
    return recipe


def _stage(node: Any, number: int, before: Sequence[Stage], *, file: Path) -> Stage:
    place = f"stage {number}"
    if not isinstance(node, Mapping):
        raise _wrong("not a stage", file, place, "a mapping, {name: …, settings: […]}")
    _check_known(node, ("name", "program", "settings", "init_from"), file=file, what=place)
    name = _name(node, place, file=file)
    program = node.get("program", TRAIN)
    if program not in PROGRAMS:
        similar = near(str(program), PROGRAMS)
        hint = (f"did you mean {similar[0]}? " if similar else "") + f"one of {', '.join(PROGRAMS)}"
        raise _wrong(f"unknown program {program}", file, name, hint)
    init_from = node.get("init_from", BEFORE)
    if init_from == BEFORE:
        init_from = next((stage.name for stage in reversed(before) if stage.program == TRAIN), None)
    if init_from is not None and not isinstance(init_from, str):
        raise _wrong("not a stage to begin with", file, name, "init_from: the name of a stage, a directory, or null")
    settings = _settings(node.get("settings"), file=file, place=name)
    return Stage(name=name, program=program, settings=settings, init_from=init_from)


def _measure(node: Any, number: int, *, file: Path) -> Measure:
    place = f"measure {number}"
    if not isinstance(node, Mapping):
        raise _wrong("not a measure", file, place, "a mapping, {name: …, settings: […], shows: {…}}")
    _check_known(node, ("name", "settings", "shows", "since"), file=file, what=place)
    name, shows, since = _name(node, place, file=file), node.get("shows"), node.get("since")
    if not isinstance(shows, Mapping) or not shows or not all(isinstance(metric, str) for metric in shows.values()):
        raise _wrong("nothing to show", file, name, "shows: {<name in the table>: <metric>}, e.g. {bpb: val/bpb}")
    if since is not None and not isinstance(since, str):
        raise _wrong("not a stage", file, name, "since: the name of a stage")
    return Measure(
        name=name,
        settings=_settings(node.get("settings"), file=file, place=name, refused=("run",)),
        shows={str(label): metric for label, metric in shows.items()},
        since=since,
    )


def _name(node: Mapping[str, Any], place: str, *, file: Path) -> str:
    name = node.get("name")
    if not isinstance(name, str) or not is_file_name(name) or not name.replace("_", "a").replace("-", "a").isalnum():
        raise _wrong("no name", file, place, "name: letters, digits, - and _")
    return name


def _texts(value: Any, *, file: Path, place: str) -> list[str]:
    value = [] if value is None else value
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise _wrong("not a list of texts", file, place, "e.g. [a, b]")
    return list(value)


def _settings(value: Any, *, file: Path, place: str, refused: Sequence[str] | None = None) -> tuple[str, ...]:
    """Settings in Hydra's grammar, checked as those of any file are."""
    settings = quote_literals(_texts(value, file=file, place=place))
    check_saved(settings, file=file, what=f"not a setting of {place}", config_dir=None)
    if refused is None:
        _check_keys(settings, place=f"{file}: {place}")
    for setting in settings:
        if is_within(key_of(setting), refused or ()):
            raise _wrong("the pipeline sets this itself", file, setting, "leave it out")
    return tuple(settings)


def _check_keys(settings: Sequence[str], *, place: str) -> None:
    """Refuse settings that are the pipeline's own affair.

    Raises:
        UserError: there is one.
    """
    for setting in settings:
        for key, hint in (REFUSED | OF_STAGE).items():
            if key_of(setting) == key:
                raise UserError("a stage cannot have this setting", file=f"{place}: {setting}", hint=hint)


def _check_order(recipe: Recipe) -> None:
    """Refuse a stage that refers to itself or a later one, and references to stages that there are not.

    Raises:
        UserError: there is one.
    """
    names = [stage.name for stage in recipe.stages]
    for number, stage in enumerate(recipe.stages):
        for name in [stage.init_from, *references(stage.settings)]:
            if name in names[number:]:
                hint = "the stages before it: " + (", ".join(names[:number]) or "none")
                raise UserError("a stage needs one that comes later", file=f"{stage.name}: {name}", hint=hint)
        _check_references(stage.name, references(stage.settings), names[:number])
        if stage.program == PAIRS and stage.init_from is None:
            hint = "init_from: the name of a stage that trains, or a run"
            raise UserError("there is no model to sample from", file=stage.name, hint=hint)
    for measure in recipe.measures:
        if measure.since is not None:
            recipe.stage(measure.since, key=f"measures.{measure.name}.since")
        _check_references(measure.name, references(measure.settings), names)


def _check_references(place: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            raise no_such_stage(name, known, key=place)


def no_such_stage(name: str, known: Sequence[str], *, key: str) -> UserError:
    """The error for a stage that a recipe does not have, with the nearest one."""
    similar = near(name, known)
    hint = (f"did you mean {similar[0]}? " if similar else "") + f"one of {', '.join(known)}"
    return UserError("no such stage", key=key, value=name, hint=hint)


def references(settings: Sequence[str]) -> list[str]:
    """The stages that settings refer to with ``@name``."""
    values = (value_of(setting) for setting in settings)
    return [value[1:].partition("/")[0] for value in values if value.startswith(MARK)]


def value_of(setting: str) -> str:
    """The value of a setting in Hydra's grammar, without quotes around it."""
    value = setting.partition("=")[2]
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def last_of_each_key(settings: Sequence[str]) -> tuple[str, ...]:
    """The settings of which each key's last one counts, in the order of these."""
    return tuple(
        setting
        for number, setting in enumerate(settings)
        if key_of(setting) not in set(map(key_of, settings[number + 1 :]))
    )


def _typed_start(setting: str) -> str | None:
    value = value_of(setting)
    return None if value in ("null", "none", "") else value


def _check_known(node: Mapping[str, Any], known: Sequence[str], *, file: Path, what: str) -> None:
    for key in node:
        if key not in known:
            similar = near(str(key), known)
            hint = (f"did you mean {similar[0]}? " if similar else "") + f"one of {', '.join(known)}"
            raise _wrong(f"unknown key {key}", file, what, hint)


def _check_distinct(names: Sequence[str], what: str, *, file: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _wrong(f"two {what}s of one name", file, name, "rename one of them")


def _wrong(what: str, file: Path, place: str, hint: str) -> UserError:
    return UserError(what, file=f"{file}: {place}", hint=hint)
