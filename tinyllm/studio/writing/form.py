"""The settings of the page Write: fields as typed, in the words and with the rules of ``generate`` and ``chat``."""

from collections.abc import Mapping
from pathlib import Path

from tinyllm.config.build import build
from tinyllm.config.compose import compose
from tinyllm.config.option_docs import read_program
from tinyllm.config.option_files import conf_dir
from tinyllm.config.targets import Option, options_of
from tinyllm.errors import UserError
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.tools.base import Tool
from tinyllm.studio.writing.pieces import Settings
from tinyllm.utils.text import command

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
STOP = "stop"
KEYS = (*SAMPLING, "max_new_tokens", "seed", STOP)
"""The keys of generate that have a field; an empty field leaves the default."""
NO_TOOL = "none"
ESCAPES = {r"\n": "\n", r"\t": "\t"}


def help_texts() -> dict[str, tuple[str, str]]:
    """Default and comment of each key, from the file that ``generate --help`` is made from."""
    keys = read_program("generate").keys
    return {name: (keys[name].default, keys[name].meaning) for name in KEYS}


def overrides(fields: Mapping[str, str], *, chat: bool = False) -> list[str]:
    """The settings as arguments of the command line."""
    given = {key: fields[key].strip() if key != STOP else _unescaped(fields[key]) for key in KEYS if fields.get(key)}
    return [f"{key}={value}" for key, value in given.items() if value and not (chat and key == STOP)]


def settings_of(fields: Mapping[str, str], *, chat: bool = False) -> Settings:
    """The settings in the fields.

    Raises:
        UserError: a wrong value, as the command line says it; ``key`` names the field.
    """
    cfg = compose(*overrides(fields, chat=chat), program="generate")
    return Settings(
        sampling=Sampling(**{name: cfg[name] for name in SAMPLING}),
        seed=cfg.seed,
        max_new_tokens=cfg.max_new_tokens,
        stop=cfg.stop,
    )


def command_of(run: Path, checkpoint: str, fields: Mapping[str, str], *, prompt: str) -> str:
    """The command that writes the same text."""
    shown = [f"prompt={prompt}"] if prompt else []
    return command("generate", f"run={run}", f"checkpoint={checkpoint}", *shown, *overrides(fields))


def chat_command_of(run: Path, checkpoint: str, fields: Mapping[str, str], *, system: str, tool: str) -> str:
    """The command that talks to the same model."""
    shown = [f"system={system}"] if system else []
    shown += [f"tools={tool}"] if tool != NO_TOOL else []
    return command("chat", f"run={run}", f"checkpoint={checkpoint}", *shown, *overrides(fields, chat=True))


def tools(config_dir: Path | None) -> list[str]:
    """The names of the tools that a model may call."""
    folders = [conf_dir() / "tools", *([config_dir / "tools"] if config_dir else [])]
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    return [NO_TOOL, *sorted(names - {NO_TOOL})]


def tool_named(name: str, config_dir: Path | None) -> Tool | None:
    """The tool of an option file.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    if name not in tools(config_dir):
        raise UserError("no such tool", key="tools", value=name, hint=", ".join(tools(config_dir)))
    cfg = compose(f"tools={name}", program="chat", config_dir=config_dir)
    tool: Tool | None = build(cfg.tools, path="tools", allow=allowed(config_dir)) if cfg.tools else None
    return tool


def allowed(config_dir: Path | None) -> frozenset[Option]:
    """The classes beyond tinyllm's own that a run's configuration may name."""
    return options_of(config_dir) if config_dir else frozenset()


def _unescaped(text: str) -> str:
    """A stop string as typed in one line: ``\\n`` is a line end and ``\\t`` a tab."""
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    return text
