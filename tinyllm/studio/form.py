"""The form of Compose without its widgets: sections and rows from ``conf/``, and the draft that is filled in.

A draft is what the command line would hold: the settings that differ from the defaults, in the order in which they were
made. Everything else follows from it, so a reload, another browser or a copied command show the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.config.cli.help import first_sentence
from tinyllm.config.option_docs import Group, Program, read_program
from tinyllm.config.option_files import conf_dir, side_by_side
from tinyllm.studio.guard import PATH_NAMES
from tinyllm.studio.report import Report
from tinyllm.utils.text import command

NONE = "none"
SECTIONS: dict[str, tuple[str, ...]] = {
    "Data": ("dataset", "tokenizer", "chat_template"),
    "Model": ("model", "attn", "ffn", "moe", "pos", "norm", "layers", "parametrization", "lora", "init_from"),
    "Training": ("objective", "optimizer", "schedule", "trainer", "seed", "ema", "curriculum", "tools", "reward"),
    "Machine and records": ("strategy", "dataloader", "distributed", "checkpoint", "logger", "run", "debug"),
}
"""The groups, and the first part of the keys of the root file, that each section holds. What is named nowhere comes
into the last one."""
START = "experiment"
"""The group of recipes, which set keys of all sections."""
HIDDEN = ("resume", "run.dir")
"""Keys that the page Runs and the studio itself set."""
FRONT = (
    *("trainer.max_steps", "trainer.max_epochs", "trainer.batch_size", "trainer.eval_every", "optimizer.lr", "seed"),
    *("model.d_model", "model.n_layers", "model.n_heads", "model.max_seq_len", "run.name", "trainer.device"),
    *("dataset.path", "dataset.name", "tokenizer.vocab_size", "tokenizer.path"),
)
"""Keys that are shown without asking. Required ones are, too."""
REQUIRED = "???"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A key of the form, or a group."""

    key: str
    section: str
    meaning: str
    default: str
    """As it would be typed; of a group its default option."""
    options: tuple[tuple[str, str], ...] = ()
    """Of a group: each option and what it is."""
    several: bool = False
    """Of a group: several options can be chosen together."""
    owner: str = ""
    """The group whose option holds the key."""

    @property
    def is_group(self) -> bool:
        """Whether it is a choice of options."""
        return bool(self.options)

    @property
    def is_path(self) -> bool:
        """Whether its value is a path."""
        return not self.is_group and self.key.rpartition(".")[2] in PATH_NAMES

    @property
    def is_front(self) -> bool:
        """Whether it is shown without asking."""
        return self.is_group or self.key in FRONT or self.default == REQUIRED

    def matches(self, words: Iterable[str]) -> bool:
        """Whether every word occurs in the name, the description or an option."""
        text = " ".join([self.key, self.meaning, *(f"{name} {what}" for name, what in self.options)]).lower()
        return all(word in text for word in words)


class Form:
    """The rows that ``conf/`` and a ``--config-dir`` give, read anew with every object.

    Args:
        config_dir: a folder of option files besides ``conf/``.
    """

    def __init__(self, config_dir: Path | None = None) -> None:
        more = [] if config_dir is None else [config_dir]
        self.program: Program = read_program("train", more=more)
        self.groups = {group.name: group for group in self.program.groups if group.options}
        self._places = [*more, conf_dir()]

    @property
    def recipes(self) -> dict[str, str]:
        """The options of ``experiment`` with their descriptions."""
        return {option.name: option.meaning for option in self.groups[START].options}

    def rows(self, choices: Mapping[str, str]) -> list[Row]:
        """All rows under the chosen options, in the order of the sections.

        Args:
            choices: the chosen option of each group; those that are missing are the defaults.
        """
        found = [self._group_row(group) for group in self.groups.values() if group.name != START]
        found += [
            Row(key=key.path, section=section_of(key.path), meaning=key.meaning, default=key.default)
            for key in self.program.keys.values()
            if key.path not in HIDDEN
        ]
        for group in self.groups.values():
            if group.name != START:
                found += self._option_rows(group, choices.get(group.name, group.default or NONE))
        known = {row.key: row for row in found}  # an option may repeat a key of another
        places = [name for names in SECTIONS.values() for name in names]

        def place(row: Row) -> tuple[int, bool]:
            first = row.owner or row.key.partition(".")[0]
            return places.index(first) if first in places else len(places), not row.is_group

        return sorted(known.values(), key=place)

    def _group_row(self, group: Group) -> Row:
        default = group.default or NONE
        options = tuple((option.name, first_sentence(option.meaning)) for option in group.options)
        several = side_by_side(place / group.name for place in self._places)
        meaning = "several can be chosen" if several else ""
        return Row(
            key=group.name,
            section=section_of(group.name),
            meaning=meaning,
            default=default,
            options=options,
            several=several,
        )

    def _option_rows(self, group: Group, chosen: str) -> Iterator[Row]:
        names = chosen.strip("[]").split(",")
        for option in group.options:
            if option.name in names and option.package:
                for key in option.keys.values():
                    path = f"{option.package}.{key.path}"
                    section = section_of(group.name)
                    yield Row(key=path, section=section, meaning=key.meaning, default=key.default, owner=group.name)


def section_of(name: str) -> str:
    """The section of a group or key."""
    first = name.partition(".")[0]
    return next((section for section, names in SECTIONS.items() if first in names), list(SECTIONS)[-1])


@dataclass
class Draft:
    """The settings made so far: key or group, and value as typed."""

    settings: dict[str, str] = field(default_factory=dict)
    version: int = field(default=0, compare=False)
    """Counts the changes."""

    def set(self, key: str, value: str | None) -> bool:
        """Set a key, or take its setting back with None. Whether that changed anything."""
        before = self.settings.get(key)
        if value is None:
            self.settings.pop(key, None)
        else:
            self.settings[key] = value
        self.version += before != value
        return before != value

    def replace(self, arguments: Iterable[str]) -> None:
        """Start again from settings given as typed."""
        self.settings = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
        self.version += 1

    @property
    def arguments(self) -> list[str]:
        """As typed on the command line; a recipe comes first."""
        keys = sorted(self.settings, key=lambda key: key != START)
        return [f"{key}={self.settings[key]}" for key in keys]

    def command(self, config_dir: Path | None, *more: str) -> str:
        """The command that starts this run from a shell, quoted where needed."""
        flags = [] if config_dir is None else ["--config-dir", str(config_dir)]
        return command("train", *flags, *self.arguments, *more)

    def name(self, report: Report) -> str:
        """The name of the run's directory, as ``train`` would choose it."""
        parts = [report.choices.get(group, "") for group in ("model", "attn", "dataset")]
        return self.settings.get("run.name") or "_".join(filter(None, parts)) or "run"
