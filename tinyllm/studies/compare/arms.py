"""The arms of a comparison: several values of a key or group, and what a study file names."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from tinyllm.config.grammar import key_of, parse_settings
from tinyllm.config.hydra_errors import explain
from tinyllm.config.option_files import groups
from tinyllm.config.quoting import quote_literals
from tinyllm.config.saved import check_saved
from tinyllm.errors import UserError
from tinyllm.studies.sweep.grid import expand
from tinyllm.studies.sweep.job_record import shortened
from tinyllm.utils.nested import is_within
from tinyllm.utils.yaml_files import read_yaml

FILE_KEYS = ("question", "reference", "settings", "arms")
NOT_ARMS = {
    "seed": "seeds=<number> repeats every arm; seed=<number> is the first",
    "dataset": "losses on different data say nothing about each other; make a study for each",
    "run.dir": "each run has its own directory below out=<directory>",
    "run.name": "each run has its own directory below out=<directory>",
    "resume": "the same command goes on where it was stopped",
    "trainer.max_minutes": "budget=minutes gives every arm as many minutes",
    "trainer.stop_after_steps": "budget.amount says how long the runs are",
    "trainer.eval_every": "give one number, so that all arms are measured at the same steps",
}
"""Keys that cannot differ between arms, or be set at all."""
REFUSED = ("run.dir", "run.name", "resume", "trainer.max_minutes", "trainer.stop_after_steps")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An arm before it is composed."""

    name: str
    settings: tuple[str, ...]
    """What makes it this arm, in Hydra's grammar, literal values quoted."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A command line of the comparison, taken apart."""

    shared: tuple[str, ...]
    """The settings of all arms and of the comparison itself."""
    arms: tuple[Choice, ...]

    def of(self, arm: Choice, *, without: Collection[str] = ()) -> list[str]:
        """All settings of an arm; its own win.

        Args:
            without: keys and groups that are left out, with what lies below them.
        """
        mine = {key_of(one) for one in arm.settings}
        shared = [one for one in self.shared if key_of(one) not in mine]
        return [one for one in (*shared, *arm.settings) if not is_within(key_of(one), without)]


def take_apart(settings: Sequence[str], *, own: Collection[str], config_dir: str | None = None) -> Asked:
    """The arms of a command line.

    Args:
        settings: in Hydra's grammar, literal values quoted; several values make arms.
        own: the keys of the comparison itself, which cannot differ between arms.
        config_dir: the directory of option files on this command line.

    Raises:
        UserError: no arms, one that is there twice, a key that cannot differ, a study file that is none.
    """
    file = next((Path(str(one.value())) for one in parse(settings) if one.key_or_group == "study"), None)
    named: dict[str, list[str]] = {"": []}
    if file is not None:
        content = read_study(file, config_dir=config_dir)
        named = content["arms"] or named
        facts = quote_literals(f"{key}={content[key]}" for key in ("question", "reference") if content[key])
        settings = [*facts, *content["settings"], *settings]
    parsed = parse(settings)
    check_keys(parsed, own)
    last = list({one.get_key_element(): one for one in parsed}.values())
    jobs = expand(last)
    varied = {key_of(one) for one in jobs[0].swept}
    shared = tuple(one for one in jobs[0].overrides if key_of(one) not in varied)
    arms = [
        Choice(name=" ".join(filter(None, (name, name_of(job.swept)))), settings=(*settings, *job.swept))
        for (name, settings), job in itertools.product(named.items(), jobs)
    ]
    check_arms(arms)
    return Asked(shared=shared, arms=tuple(arms))


def parse(settings: Sequence[str]) -> list[Override]:
    """The settings as Hydra reads them."""
    with explain(list(settings)):
        return parse_settings(settings)


def check_keys(parsed: Iterable[Override], own: Collection[str]) -> None:
    """Refuse what a comparison cannot vary, or not even set.

    Raises:
        UserError: such a key.
    """
    for one in parsed:
        key = one.key_or_group
        typed = str(one.input_line).partition("=")[2]
        if key in REFUSED:
            raise UserError("not a setting of a comparison", key=key, value=typed, hint=NOT_ARMS[key])
        if not one.is_sweep_override():
            continue
        if is_within(key, own):
            hint = "one value; it holds for the whole comparison"
            raise UserError("it cannot differ between arms", key=key, value=typed, hint=hint)
        for name, hint in NOT_ARMS.items():
            if is_within(key, [name]):
                raise UserError("it cannot differ between arms", key=key, value=typed, hint=hint)


def check_arms(arms: Sequence[Choice]) -> None:
    """Refuse what is no comparison.

    Raises:
        UserError: fewer than two arms, or two of one name or the same settings.
    """
    if len(arms) < 2:
        hint = "give a key or group several values, e.g. attn=mha,gqa, or study=<file> with arms"
        raise UserError("nothing to compare", file=arms[0].name or "one arm", hint=hint)
    for what in ("name", "settings"):
        seen: dict[Any, Choice] = {}
        for arm in arms:
            value = getattr(arm, what)
            if value in seen:
                hint = f"two arms have the same {what}; leave one out"
                raise UserError("an arm is there twice", file=arm.name, hint=hint)
            seen[value] = arm


def name_of(settings: Sequence[str]) -> str:
    """An arm in a few words: options of groups by their own name, other keys with their last part."""
    lasts = [key_of(one).rpartition(".")[2] for one in settings]
    words = []
    for one, last in zip(settings, lasts, strict=True):
        key, _, value = shortened(one).partition("=")
        shown = last if lasts.count(last) == 1 else key_of(one)
        words.append(value if key_of(key) in groups() else f"{shown}={value}")
    return " ".join(words)


def read_study(file: Path, *, config_dir: str | None = None) -> dict[str, Any]:
    """A study file: ``question``, ``reference``, ``settings`` (a list of settings for all arms) and ``arms`` (a list of
    settings by name), each of which may be missing.

    Raises:
        UserError: it is not there, or not such a file.
    """
    if file.is_dir():
        file = file / "study.yaml"
    if not file.is_file():
        raise UserError("no such study", file=file, hint="experiments/<study>/study.yaml with arms: {name: [settings]}")
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise UserError("not a study file", file=file, hint=f"it has the keys {', '.join(FILE_KEYS)}")
    unknown = sorted(set(content) - set(FILE_KEYS))
    if unknown:
        raise UserError("unknown key", key=str(unknown[0]), file=file, hint=f"one of {', '.join(FILE_KEYS)}")
    arms, shared = content.get("arms") or {}, content.get("settings") or []
    lists = [("settings", shared), *(arms.items() if isinstance(arms, dict) else [("arms", None)])]
    for name, one in lists:
        if not isinstance(one, list) or not all(isinstance(word, str) for word in one):
            hint = "a list of settings, e.g. [attn=mla, model.block.attn.kv_latent_dim=64]"
            raise UserError("not a list of settings", key=str(name), file=file, hint=hint)
        what = f"not a setting for {'all arms' if one is shared else f'the arm {name}'}"
        check_saved(quote_literals(one), file=file, what=what, config_dir=config_dir, several=one is shared)
    return {
        "question": content.get("question"),
        "reference": content.get("reference"),
        "settings": quote_literals(shared),
        "arms": {str(name): quote_literals(one) for name, one in arms.items()},
    }
