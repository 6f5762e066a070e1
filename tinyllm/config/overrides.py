"""Overrides on top of overrides: what a kind of layer, or the other side of a comparison, changes."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.cli.arguments import check_settings
from tinyllm.config.grammar import parse_settings
from tinyllm.config.hydra_errors import explain
from tinyllm.config.paths import conf_dir
from tinyllm.errors import UserError
from tinyllm.utils.nested import has_key

OWN_PLACE = {
    "run.dir": "each job has its own directory below hydra.sweep.dir; leave it out",
    "run.name": "each job's directory is named by its number and what varies; leave it out",
    "resume": "start the same command again with hydra.sweep.dir=<the sweep's directory>",
}
"""Keys that the sweep sets for each job."""


def parse(arguments: Iterable[str]) -> list[Override]:
    """The settings as Hydra reads them, the last one of each key.

    Raises:
        UserError: a key that the sweep itself sets.
    """
    arguments = list(arguments)
    with explain(arguments):
        parsed = parse_settings(arguments)
    for override in parsed:
        hint = OWN_PLACE.get(override.key_or_group)
        if hint:
            typed = str(override.input_line).partition("=")[2]
            raise UserError("a multirun has no use for it", key=override.key_or_group, value=typed, hint=hint)
    return list({override.get_key_element(): override for override in parsed}.values())


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def as_given(overrides: Any) -> list[str]:
    """The overrides in Hydra's node, as Hydra was given them: going through the list would resolve what is in them."""
    given: Any = OmegaConf.to_container(overrides)
    return [str(one) for one in given]


def words(text: str) -> list[str]:
    """The overrides in a text, in Hydra's grammar: split at the spaces that are not inside quotes or brackets.

    Quotes around a whole override, as a shell would want them, are left out.

    Raises:
        UserError: a quotation mark or a bracket without its other half.
    """
    found, word, open_quote, depth = [], "", "", 0
    for character in f"{text} ":
        if character.isspace() and not open_quote and not depth:
            found.append(word)
            word = ""
            continue
        word += character
        if open_quote:
            open_quote = "" if character == open_quote else open_quote
        elif character in "'\"":
            open_quote = character
        else:
            depth += (character in "{[(") - (character in ")]}")
    if word.strip():
        half = f"{open_quote} without its other half" if open_quote else "brackets that do not match"
        raise UserError("value not understood", file=text, hint=f"{half}; overrides stand between spaces")
    return [re.sub(r"""^(['"])(.*)\1$""", r"\2", one) for one in found if one]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A composition by its overrides, to put others on top of."""

    program: str
    overrides: Sequence[str]
    """In Hydra's grammar, literal values quoted."""
    hydra: Sequence[str] = ()
    """Overrides of Hydra itself, such as its search path."""
    directories: Sequence[str] = ()
    """Where option files lie besides the shipped ones."""

    def with_(self, more: Iterable[str], /, *, keep_hydra: bool = False) -> DictConfig:
        """The composition with ``more`` on top.

        Where ``more`` chooses another option of a group, the base's settings of that group stay if the new option has
        the key as well, else they are dropped with the option that they belonged to.

        Args:
            more: in Hydra's grammar, literal values quoted.
            keep_hydra: leave the ``hydra`` node in.

        Raises:
            UserError: ``more`` does not compose.
        """
        more = list(more)
        check_settings(more, directories=self.directories)
        replaced = {key_of(one) for one in more}
        nodes = [node for group in replaced for node in nodes_of(group)]
        below = tuple(f"{node}." for node in nodes)
        kept = [one for one in self.overrides if key_of(one) not in replaced]
        doubtful = [one for one in kept if below and key_of(one).startswith(below)]
        cfg = self._compose([one for one in kept if one not in doubtful] + more, keep_hydra)
        fitting = [one for one in doubtful if has_key(cfg, key_of(one))]
        if not fitting:
            return cfg
        return self._compose([one for one in kept if one not in doubtful or one in fitting] + more, keep_hydra)

    def _compose(self, overrides: list[str], keep_hydra: bool) -> DictConfig:
        with hydra_on_conf(), explain(overrides):
            return hydra_compose(self.program, [*overrides, *self.hydra], return_hydra_config=keep_hydra)


@contextmanager
def hydra_on_conf() -> Iterator[None]:
    """Hydra initialised on our directory; inside ``hydra.main`` it already is."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield


def nodes_of(group: str) -> list[str]:
    """Where the options of a group put their keys."""
    found = (
        re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
        for file in sorted((conf_dir() / group).glob("*.yaml"))[:1]
    )
    return [match[1] for match in found if match and match[1] != "_global_"]
