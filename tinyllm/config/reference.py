"""The option reference, written from the yaml files: ``python -m tinyllm.reference > docs/options.md``."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tinyllm.config.option_docs import File, Group, Key, Program, programs, read_program
from tinyllm.utils.streams import prepare_streams

_HEAD = """\
# Options

Every program, group and key. Written by `python -m tinyllm.reference > docs/options.md` from the comments
in `conf/`; a test fails when it is out of date. `null` means: not set, and the text says what happens then.

A setting is written `key=value`, a choice `group=option`. The option in **bold** is the default. A key that holds text
has it as typed; a whole number may be written `1000`, `1_000`, `1e3` or `2**19`.

The environment variable `LOG_LEVEL` says how much is printed: `INFO` (the default), `WARNING` (no progress: notes,
results and errors), `ERROR` (results and errors) or `DEBUG` (errors with their traceback)."""


def markdown() -> str:
    """The whole reference as one Markdown document."""
    parts = [_HEAD]
    shown: dict[str, Program] = {}
    for name in programs():
        program = read_program(name)
        parts += _program(program, shown)
        shown[name] = program
    return "\n\n".join(parts) + "\n"


def groups_table(program: str) -> str:
    """The groups of a program with their options, as the table of the README."""
    rows = [
        (
            f"`{group.name}`",
            " ".join(f"**`{one.name}`**" if one in group.chosen else f"`{one.name}`" for one in group.options),
            f"`{group.package}.*`" if group.package else "any key",
        )
        for group in read_program(program).groups
    ]
    return _table(("group", "options (**default**)", "sets"), rows)


def _program(program: Program, earlier: dict[str, Program]) -> list[str]:
    """The sections of one program; what an earlier program takes as well is named and not repeated."""
    parts = [f"## {program.name}", f"`python -m tinyllm.{program.name}`: {_text(program.meaning)}"]
    for other in earlier.values():
        keys = [key for key in program.keys if program.keys[key] == other.keys.get(key)]
        defaults = {group.name: group.default for group in other.groups}
        groups = [group for group in program.groups if any(_same_options(group, one) for one in other.groups)]
        if groups:
            names = [
                f"`{one.name}`" + ("" if one.default == defaults[one.name] else f" (here `{one.default}` by default)")
                for one in groups
            ]
            parts.append(f"Groups as in {other.name}: {', '.join(names)}.")
        if len(keys) > 9:  # fewer are read more easily where they belong
            parts.append(f"Keys as in {other.name}: {', '.join(f'`{key}`' for key in keys)}.")
            program = replace(program, keys={path: program.keys[path] for path in program.keys if path not in keys})
    if program.keys:
        rows = [(f"`{key.path}`", f"`{key.default}`", _text(key.meaning)) for key in program.keys.values()]
        parts.append(_table(("key", "default", "meaning"), rows))
    known = [group for other in earlier.values() for group in other.groups]
    for group in program.groups:
        if group.options and not any(_same_options(group, one) for one in known):
            parts += _group(group)
    return parts


def _same_options(group: Group, other: Group) -> bool:
    """Whether two programs differ in a group by the default at most."""
    return replace(group, default=None) == replace(other, default=None)


def _group(group: Group) -> list[str]:
    """The options of one group, then their keys, then a table of the defaults that differ."""
    node = f", the keys of `{group.package}`" if group.package else ""
    rows = [
        (f"**`{one.name}`**" if one in group.chosen else f"`{one.name}`", _text(one.meaning)) for one in group.options
    ]
    parts = [f"### `{group.name}=…`{node}", _table(("option", "what"), rows)]
    if not group.package:  # an overlay sets keys of other groups, which stand there
        settings = [
            (f"`{option.package}.{key.path}`", f"`{key.default}`", _text(key.meaning))
            for option in group.options
            for key in option.keys.values()
            if option.package
        ]
        return [*parts, _table(("key", "default", "meaning"), settings)] if settings else parts
    having: dict[str, list[tuple[File, Key]]] = defaultdict(list)
    for option in group.options:
        for key in option.keys.values():
            having[key.path].append((option, key))
    keys, differing = [], []
    for path, users in having.items():
        by_default = _by_text([(f"`{key.default}`", option.name) for option, key in users])
        if len(by_default) > 3:
            differing.append(path)
            default = "see below"
        else:
            default = _told_apart(by_default)
        only = "" if len(users) == len(group.options) else ", ".join(f"`{option.name}`" for option, _ in users)
        meaning = _told_apart(_by_text([(_text(key.meaning), option.name) for option, key in users]))
        keys.append((f"`{group.package}.{path}`", default, only, meaning))
    if keys:
        parts.append(_table(("key", "default", "only with", "meaning"), keys))
    if differing:
        matrix = [
            (
                f"`{option.name}`",
                *(f"`{option.keys[path].default}`" if path in option.keys else "" for path in differing),
            )
            for option in group.options
        ]
        parts.append(_table(("defaults", *(f"`{path}`" for path in differing)), matrix))
    return parts


def _by_text(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The options of each text."""
    found: dict[str, list[str]] = defaultdict(list)
    for text, option in pairs:
        found[text].append(option)
    return found


def _told_apart(by_text: dict[str, list[str]]) -> str:
    """The one text, or each with the options it holds for."""
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())


def _text(comment: str) -> str:
    """A comment as Markdown text: nothing in it is markup."""
    return comment.replace("<", "&lt;").replace("*", "\\*")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table without the columns that are empty throughout."""
    wanted = [index for index in range(len(head)) if any(row[index] for row in rows)]
    lines = [[head[index] for index in wanted], ["---"] * len(wanted)]
    lines += [[row[index].replace("|", "\\|") for index in wanted] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Entry point of ``python -m tinyllm.reference``."""
    prepare_streams()
    print(markdown(), end="", flush=True)
