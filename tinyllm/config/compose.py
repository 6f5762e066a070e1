"""Compose a configuration from the option groups of ``conf/`` and a list of overrides, and check it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config import schema, sources
from tinyllm.config.checks import check
from tinyllm.config.cli.arguments import check_override_grammar
from tinyllm.config.grammar import as_given, key_of, words
from tinyllm.config.horizons import fill_horizon
from tinyllm.config.hydra_errors import explain
from tinyllm.config.layers import expand
from tinyllm.config.learning_rates import fill_learning_rate
from tinyllm.config.option_files import conf_dir, nodes_of
from tinyllm.config.quoting import conformed, quote_literals
from tinyllm.config.targets import Option, options_of, resolve_target, type_problem
from tinyllm.errors import UserError
from tinyllm.utils.nested import flatten, has_key
from tinyllm.utils.signatures import annotations_of
from tinyllm.utils.yaml_files import read_yaml

DATA_PROGRAM = "prepare"
"""The program whose configuration has nothing but data, in which the sources of a mixture are composed."""
D_FF, D_FF_PER_D_MODEL = "model.d_ff", 4
"""Hidden size of a feed-forward layer as a multiple of the width (Vaswani et al. 2017, §3.3)."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A root file and the overrides on it."""

    program: str
    overrides: Sequence[str]
    """In Hydra's grammar, literal values quoted."""
    hydra: Sequence[str] = ()
    """Overrides of Hydra's own settings, e.g. its search path."""
    directories: Sequence[str] = ()
    """Directories of option files besides ``conf/``."""

    @classmethod
    def of(cls, hydra_node: DictConfig, program: str) -> "Composition":
        """The composition that a ``hydra`` node records."""
        return cls(
            program=program,
            overrides=as_given(hydra_node.overrides.task),
            hydra=[
                override for override in as_given(hydra_node.overrides.hydra) if key_of(override) == "hydra.searchpath"
            ],
            directories=[source.path for source in hydra_node.runtime.config_sources if source.schema == "file"],
        )

    def with_overrides(self, more: Iterable[str], /, *, keep_hydra: bool = False) -> DictConfig:
        """Compose with ``more`` on top.

        If ``more`` chooses a different option of a group, earlier overrides of that group's keys are kept where the new
        option has the key, and dropped otherwise.

        Args:
            more: in Hydra's grammar, literal values quoted.
            keep_hydra: leave the ``hydra`` node in.

        Raises:
            UserError: ``more`` does not compose.
        """
        more = list(more)
        check_override_grammar(more, directories=self.directories)
        replaced = {key_of(override) for override in more}
        replaced_nodes = tuple(f"{node}." for group in replaced for node in nodes_of(group))
        kept = [override for override in self.overrides if key_of(override) not in replaced]
        maybe_stale = [override for override in kept if key_of(override).startswith(replaced_nodes)]
        cfg = self.compose([override for override in kept if override not in maybe_stale] + more, keep_hydra)
        still_valid = [override for override in maybe_stale if has_key(cfg, key_of(override))]
        if not still_valid:
            return cfg
        kept = [override for override in kept if override not in maybe_stale or override in still_valid]
        return self.compose(kept + more, keep_hydra)

    def compose(self, overrides: Sequence[str], keep_hydra: bool) -> DictConfig:
        """Compose the root file with exactly these overrides.

        Raises:
            UserError: the overrides do not compose.
        """
        with hydra_on_conf(), explain(overrides):
            return hydra_compose(self.program, [*overrides, *self.hydra], return_hydra_config=keep_hydra)


def compose(*overrides: str, program: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """The checked configuration that ``python -m tinyllm.<program> <overrides>`` would run with.

    Args:
        overrides: as on the command line: ``"model=large"``, ``"attn=gqa"``.
        program: the root file, e.g. ``"train"`` or ``"generate"``.
        config_dir: a directory of additional option files, like ``--config-dir``.

    Raises:
        UserError: the overrides do not compose, or the configuration does not pass the checks.
    """
    return compose_with_choices(overrides, program=program, config_dir=config_dir)[0]


def compose_with_choices(
    overrides: Iterable[str], *, program: str, config_dir: str | Path | None = None
) -> tuple[DictConfig, dict[str, str]]:
    """The same as :func:`compose`, and the chosen option of each group.

    Raises:
        UserError: see there.
    """
    schema.register()
    quoted = quote_literals(overrides)
    check_override_grammar(quoted, directories=[config_dir] if config_dir else [])
    composition = Composition(program=program, overrides=quoted, hydra=_search_path(config_dir))
    cfg = composition.compose(quoted, keep_hydra=True)
    chosen = cfg.hydra.runtime.choices
    choices = {str(group): str(option) for group, option in chosen.items() if not str(group).startswith("hydra/")}
    return _checked_without_hydra(cfg, program, quoted, config_dir=config_dir), choices


def compose_on_top(
    text: str, overrides: Iterable[str], *, program: str, config_dir: str | Path | None = None
) -> DictConfig:
    """The checked configuration of ``overrides`` with those in ``text`` on top; only the latter must take effect.

    Args:
        text: overrides separated by spaces.
        overrides: in Hydra's grammar, literal values quoted.
        program: the root file.
        config_dir: a directory of additional option files.

    Raises:
        UserError: the overrides do not compose, or the configuration does not pass the checks.
    """
    more = [
        override if override.partition("=")[2][:1] in ("'", '"') else quote_literals([override])[0]
        for override in words(text)
    ]
    directories = [str(config_dir)] if config_dir else []
    base = Composition(
        program=program, overrides=list(overrides), hydra=_search_path(config_dir), directories=directories
    )
    cfg = base.with_overrides(more, keep_hydra=True)
    typed = frozenset(map(key_of, more))
    return _checked_without_hydra(cfg, program, more, config_dir=config_dir, typed=typed)


def _search_path(config_dir: str | Path | None) -> list[str]:
    return [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []


def _checked_without_hydra(
    cfg: DictConfig,
    program: str,
    overrides: Iterable[str],
    *,
    config_dir: str | Path | None,
    typed: frozenset[str] | None = None,
) -> DictConfig:
    """Take the ``hydra`` node out of a composed configuration and check the rest."""
    hydra_node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    allow = options_of(Path(config_dir)) if config_dir else frozenset()
    with explain(overrides):
        return checked(cfg, hydra_node, program, allow=allow, typed=typed)


def checked(
    cfg: DictConfig,
    hydra_node: DictConfig,
    program: str,
    *,
    allow: frozenset[Option] = frozenset(),
    typed: frozenset[str] | None = None,
    set_by_program: Collection[str] = (),
) -> DictConfig:
    """Expand the descriptions of layers and of the sources of a mixture, then check every key.

    Args:
        cfg: a composed configuration without its ``hydra`` node.
        hydra_node: that node; it records the overrides and where the files came from.
        program: the root file's name.
        allow: options besides those of ``conf/``.
        typed: keys on the command line, if the overrides include more than those; None: all overrides.
        set_by_program: keys set by the program; they never disable another key.

    Raises:
        UserError: see :func:`tinyllm.config.checks.check`, and ``expand`` of ``config/layers.py`` and
            ``config/sources.py``.
    """
    choices = {str(group): str(option) for group, option in hydra_node.runtime.choices.items()}
    directories = [source.path for source in hydra_node.runtime.config_sources if source.schema == "file"]
    overrides = [
        override for override in as_given(hydra_node.overrides.task) if typed is None or key_of(override) in typed
    ]
    named = {key_of(override) for override in overrides}
    if "experiment" in named:
        named |= experiment_keys(choices["experiment"], directories)
    values = {key_of(override): override.partition("=")[2] for override in hydra_node.overrides.task}
    fill_horizon(cfg, choices.get("model", ""))
    check_composed = partial(_check, program=program, set_by_program=set_by_program, typed=values, allow=allow)
    fill_sizes(cfg, allow)
    recompose = Composition.of(hydra_node, program).with_overrides
    expand(cfg, recompose=recompose, check=check_composed, named=named, allow=allow)
    data = replace(Composition.of(hydra_node, DATA_PROGRAM), overrides=[])
    sources.expand(cfg, compose=partial(_composed_data, data), check=partial(_check_data, allow))
    check_composed(cfg, named)
    return cfg


def _composed_data(base: Composition, overrides: list[str]) -> DictConfig:
    schema.register()
    return base.with_overrides(overrides)


def _check_data(allow: frozenset[Option], cfg: DictConfig, overrides: list[str]) -> None:
    values = {key_of(override): override.partition("=")[2] for override in overrides}
    with explain(overrides):
        check(cfg, schema.SCHEMAS[DATA_PROGRAM], named=set(values), typed=values, allow=allow)


def _check(
    cfg: DictConfig,
    named: set[str],
    *,
    program: str,
    set_by_program: Collection[str],
    typed: Mapping[str, str],
    allow: frozenset[Option],
) -> None:
    """Fill in what follows from other keys, then check; ``expand`` applies this to each kind of layer as well."""
    fill_sizes(cfg, allow)
    fill_learning_rate(cfg)
    check(cfg, schema.SCHEMAS[program], named=named, set_by_program=set_by_program, typed=typed, allow=allow)


def experiment_keys(experiment: str, sources: Iterable[str]) -> set[str]:
    """The keys that an experiment file sets."""
    files = [Path(source) / "experiment" / f"{experiment}.yaml" for source in sources]
    contents = [read_yaml(file, of=dict) for file in files if file.is_file()]
    return {key for content in contents for key, _ in flatten(content) if key != "defaults"}


@contextmanager
def hydra_on_conf() -> Iterator[None]:
    """Initialize Hydra on ``conf/``, unless ``hydra.main`` already has."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield


def fill_sizes(cfg: DictConfig, allow: frozenset[Option]) -> None:
    """Replace ``model.d_ff=null`` by 4 · ``model.d_model``, so that saved configurations hold the number.

    A user's own model class whose constructor accepts ``d_ff=None`` keeps the null.

    Args:
        cfg: a composed configuration, changed in place.
        allow: options besides those of ``conf/``.
    """
    model = None if "model" not in cfg or OmegaConf.is_missing(cfg, "model") else cfg.model
    if not isinstance(model, DictConfig) or model.get("d_ff", 0) is not None:
        return
    width = conformed(model.get("d_model"), int)
    if not isinstance(width, int) or isinstance(width, bool):
        return
    try:
        annotation = annotations_of(resolve_target(model, path="model", extra=allow)).get("d_ff")
    except UserError:  # check() reports it with its place
        return
    if type_problem(None, annotation) is not None:
        with open_dict(cfg):
            model.d_ff = D_FF_PER_D_MODEL * width
