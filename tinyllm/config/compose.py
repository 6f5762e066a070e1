"""Composition of a configuration from the shipped groups, in Python and for the entry points."""

from collections.abc import Collection, Iterable
from pathlib import Path

from hydra import compose as hydra_compose
from omegaconf import DictConfig, open_dict

from tinyllm.config import schema
from tinyllm.config.allowed import Option, options_of
from tinyllm.config.checks import check
from tinyllm.config.cli.arguments import check_settings
from tinyllm.config.hydra_errors import explain
from tinyllm.config.layers import expand
from tinyllm.config.overrides import Base, as_given, hydra_on_conf, key_of, words
from tinyllm.config.quoting import quote_literals
from tinyllm.config.sizes import fill_sizes
from tinyllm.utils.nested import flatten
from tinyllm.utils.yaml_files import read_yaml


def compose(*overrides: str, program: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """The configuration that ``python -m tinyllm.<program> <overrides>`` would run with, checked.

    Args:
        overrides: as on the command line, in Hydra's grammar: ``"model=large"``, ``"attn=gqa"``.
        program: the root file, e.g. ``"train"`` or ``"generate"``.
        config_dir: a further directory of option files, as ``--config-dir``.

    Raises:
        UserError: the composition or the check failed.
    """
    schema.register()
    quoted = quote_literals(overrides)
    check_settings(quoted, directories=[config_dir] if config_dir else [])
    allow = options_of(Path(config_dir)) if config_dir else frozenset()
    with hydra_on_conf(), explain(quoted):
        cfg = hydra_compose(program, [*quoted, *_search_path(config_dir)], return_hydra_config=True)
    hydra_node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    with explain(quoted):
        return checked(cfg, hydra_node, program, allow=allow)


def checked(
    cfg: DictConfig,
    hydra_node: DictConfig,
    program: str,
    *,
    allow: frozenset[Option] = frozenset(),
    typed: frozenset[str] | None = None,
    filled: Collection[str] = (),
) -> DictConfig:
    """``cfg`` with the blocks of layers that differ, after the preflight.

    Args:
        cfg: a composed configuration without its ``hydra`` node.
        hydra_node: that node, for what was named on the command line and where the files came from.
        program: the root file's name.
        allow: options besides those of ``conf/``.
        typed: the keys of the command line itself, where the overrides hold more; None: all overrides.
        filled: keys that the program itself has set; what they turn off was not the user's mistake.

    Raises:
        UserError: see :func:`tinyllm.config.checks.check` and :func:`tinyllm.config.layers.expand`.
    """
    choices = {str(group): str(option) for group, option in hydra_node.runtime.choices.items()}
    sources = [source.path for source in hydra_node.runtime.config_sources if source.schema == "file"]
    overrides = [one for one in as_given(hydra_node.overrides.task) if typed is None or key_of(one) in typed]
    chosen = "experiment" in map(key_of, overrides)
    named = {key_of(one) for one in overrides}
    if chosen:
        named |= experiment_keys(choices["experiment"], sources)

    given = {key_of(one): one.partition("=")[2] for one in hydra_node.overrides.task}

    def check_named(composed: DictConfig, named: set[str]) -> None:
        fill_sizes(composed, allow)
        check(composed, schema.SCHEMAS[program], named=named, filled=filled, typed=given, allow=allow)

    fill_sizes(cfg, allow)
    expand(cfg, base=base_of(hydra_node, program), check=check_named, named=named, allow=allow)
    check_named(cfg, named)
    return cfg


def compose_on_top(
    text: str, overrides: Iterable[str], *, program: str, config_dir: str | Path | None = None
) -> DictConfig:
    """The configuration of ``overrides`` with those in ``text`` on top, checked; only the latter must take effect.

    Args:
        text: overrides between spaces.
        overrides: in Hydra's grammar, literal values quoted.
        program: the root file.
        config_dir: a further directory of option files.

    Raises:
        UserError: the composition or the check failed.
    """
    more = [one if one.partition("=")[2][:1] in ("'", '"') else quote_literals([one])[0] for one in words(text)]
    base = Base(
        program=program,
        overrides=list(overrides),
        hydra=_search_path(config_dir),
        directories=[str(config_dir)] if config_dir else [],
    )
    cfg = base.with_(more, keep_hydra=True)
    hydra_node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    allow = options_of(Path(config_dir)) if config_dir else frozenset()
    with explain(more):
        return checked(cfg, hydra_node, program, allow=allow, typed=frozenset(map(key_of, more)))


def _search_path(config_dir: str | Path | None) -> list[str]:
    return [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []


def base_of(hydra_node: DictConfig, program: str) -> Base:
    """How a configuration was composed, from its ``hydra`` node."""
    return Base(
        program=program,
        overrides=as_given(hydra_node.overrides.task),
        hydra=[one for one in as_given(hydra_node.overrides.hydra) if key_of(one) == "hydra.searchpath"],
        directories=[source.path for source in hydra_node.runtime.config_sources if source.schema == "file"],
    )


def experiment_keys(experiment: str, sources: Iterable[str]) -> set[str]:
    """The keys that an experiment file sets."""
    files = [Path(source) / "experiment" / f"{experiment}.yaml" for source in sources]
    contents = [read_yaml(file, of=dict) for file in files if file.is_file()]
    return {key for content in contents for key, _ in flatten(content) if key != "defaults"}
