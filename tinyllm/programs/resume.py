"""Resume a run: its saved settings under the new ones, and what may differ between them."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.cli.arguments import CommandLine
from tinyllm.config.cli.main import Invocation
from tinyllm.config.compose import D_FF
from tinyllm.config.grammar import escaped, key_of, parse_settings, text_of
from tinyllm.config.learning_rates import LR
from tinyllm.config.migrations import DEFAULTS_CHANGED, former_choices, legacy_defaults, upgraded
from tinyllm.config.option_files import nodes_of
from tinyllm.config.renames import renamed_setting
from tinyllm.config.saved import literal_settings, saved_content, saved_settings
from tinyllm.config.start_keys import NOT_SAVED
from tinyllm.config.targets import Option
from tinyllm.data.run_data import RunData, data_part
from tinyllm.errors import UserError
from tinyllm.programs.builders import BATCH, planned_batch
from tinyllm.runs.checkpoint import Checkpoint, find, run_of, steps_in
from tinyllm.runs.directory import check_free
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import CHECKPOINTS, CONFIG, FAILED, METRICS, OVERRIDES, RUN_JSON, RUNNING
from tinyllm.runs.lineage import later_than
from tinyllm.runs.metrics_log import last_record
from tinyllm.runs.state_schema import read_checked
from tinyllm.training.batch_plan import RunProgress, regroup
from tinyllm.utils.nested import flatten, is_within
from tinyllm.utils.yaml_files import read_yaml

FIXED = (
    *("model", "tokenizer", "dataset", "objective._target_", "optimizer._target_", "optimizer.orthogonal_head"),
    "trainer.seq_len",
    *(f"lora.{key}" for key in ("_target_", "rank", "alpha", "targets")),
)
"""Keys that a resumed run cannot change."""
PROVEN = re.compile(r"tokenizer\.path|dataset\.(sources\.\w+\.)?(path|val_path)")
"""Paths among them that may change: fingerprints of tokens and tokenizer show whether the data is the same."""
ALTERNATIVES = (
    ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs"),
    ("trainer.grad_accum_steps", "trainer.total_batch_tokens"),
)
"""Keys that exclude each other: one on the command line replaces a saved one of the same group."""
DERIVED = (D_FF, LR)
"""Keys whose default follows from other keys, by a rule that may be a different one today."""
FACTS = ("max_steps", "precision", "data.train", "data.val", "data.tokenizer")
"""Entries of the manifest without which a run cannot be resumed."""
LAYERS = "model.layers"
"""Composed from strings and files, so its blocks may have changed in content and number since the run was made."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A run to resume."""

    checkpoint: Checkpoint
    named: frozenset[str]
    """Keys and groups on this command line."""
    notes: list[str]
    """Damaged checkpoints that were skipped."""


def was_killed_at_its_end(run: Path, *, step: int, is_evaluated: bool) -> bool:
    """Whether a run was killed after its last step was recorded and saved, and before its result was.

    Args:
        step: its last step.
        is_evaluated: whether the last step ends with an evaluation.

    Raises:
        UserError: ``run.json`` is damaged.
    """
    if not (run / RUN_JSON).is_file() or read_run_json(run).get("status") not in (RUNNING, FAILED):
        return False
    record = last_record(run / METRICS) or {}
    return record.get("step") == step and (not is_evaluated or any(name.startswith("val/") for name in record))


def look_up(line: CommandLine) -> tuple[list[str], Resumption | None]:
    """The settings of a command line with ``resume=…``, preceded by those of the saved run, and the run to resume.

    ``resume=auto`` without a checkpoint starts a run: the settings are the line's alone and the run is None.

    Raises:
        UserError: no checkpoint, no undamaged one, ``resume=auto`` without ``run.dir``, or a multirun.
    """
    parsed = parse_settings(line.settings)
    if line.multirun:
        typed = next(str(override.input_line) for override in parsed if override.key_or_group == "resume")
        hint = (
            "leave out -m, or use init_from to start from its weights;"
            " to continue a sweep, start it again with its hydra.sweep.dir"
        )
        raise UserError("resume cannot be combined with -m", file=typed, hint=hint)
    values = {override.key_or_group: override.value() for override in parsed}
    source = text_of(values["resume"])
    if not source:
        hint = "a run directory or one of its checkpoints"
        raise UserError("no directory is given", key="resume", value=source, hint=hint)
    if source == "auto":
        if not values.get("run.dir"):
            hint = "set run.dir=…, the directory to resume or to start in"
            raise UserError("resume=auto needs a run directory", key="resume", value="auto", hint=hint)
        source = text_of(values["run.dir"])
        if not steps_in(Path(source) / CHECKPOINTS):
            return line.settings, None
    run = run_of(Path(source))
    if run is not None:
        check_free(run)
    notes: list[str] = []
    checkpoint = find(source, prefer="last", tell=notes.append, key="resume")
    if "imported" in checkpoint.manifest:
        hint = f"it was imported and has only weights; train it further with init_from={source}"
        raise UserError("there is no run to resume", key="resume", value=source, hint=hint)
    if run is None and not values.get("run.dir"):
        hint = "it is not in checkpoints/ beside a run.json; set run.dir=…, a new directory to continue in"
        raise UserError("the checkpoint does not belong to a run", key="resume", value=source, hint=hint)
    checkpoint.require(*FACTS)
    saved = saved_settings(checkpoint.path / OVERRIDES, config=checkpoint.path / CONFIG, config_dir=line.config_dir)
    config = dict(flatten(read_yaml(checkpoint.path / CONFIG, of=dict, what="checkpoint damaged")))
    saved = [*former_choices(saved, config.get), *saved]
    displaced = {key for keys in ALTERNATIVES for key in keys if not values.keys().isdisjoint(keys)} - values.keys()
    replaced = [*values, *displaced, *(node_of(name) for name in values if "." not in name)]
    settings = [override for override in to_save(saved) if not is_within(key_of(override), replaced)]
    settings += [*(f"{key}=null" for key in sorted(displaced)), *line.settings]
    return settings, Resumption(checkpoint=checkpoint, named=frozenset(values) | displaced, notes=notes)


def continue_job(cfg: DictConfig, invocation: Invocation) -> Resumption | None:
    """The run that a job of a sweep resumes in its directory; None: the job starts one.

    Raises:
        UserError: the run there has different settings, or no undamaged checkpoint.
    """
    directory = Path(cfg.run.dir)
    if not steps_in(directory / CHECKPOINTS):
        return None
    check_free(directory)
    notes: list[str] = []
    checkpoint = find(directory, prefer="last", tell=notes.append, key="run.dir")
    checkpoint.require(*FACTS)
    settings = read_yaml(checkpoint.path / OVERRIDES, of=list, what="not the settings of a run")
    saved = {str(renamed_setting(setting)) for setting in settings}
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    current = set(literal_settings(to_save(invocation.overrides), values))
    if saved != current:
        only_saved, only_current = " ".join(sorted(saved - current)), " ".join(sorted(current - saved))
        hint = (
            f"the run has {only_saved or 'nothing else'}, the job has {only_current or 'nothing else'};"
            " remove the directory, or choose a different sweep directory"
        )
        raise UserError("the run in the job's directory has different settings", file=directory, hint=hint)
    return Resumption(checkpoint=checkpoint, named=frozenset(map(key_of, invocation.overrides)), notes=notes)


def to_save(overrides: Iterable[str]) -> list[str]:
    """The settings that a run saves, without those that belong to one start of the program."""
    return [override for override in overrides if not is_within(key_of(override), NOT_SAVED)]


def reconcile(
    cfg: DictConfig, checkpoint: Checkpoint, *, named: Iterable[str], allow: frozenset[Option] = frozenset()
) -> list[str]:
    """Make a recomposed configuration match the saved one, except for what the command line names.

    Other differences can arise because ``conf/`` or a ``--config-dir`` has changed since the run was made.

    Args:
        cfg: changed in place where a difference did not come from this command line.
        named: keys and groups on this command line.
        allow: options besides those of ``conf/``.

    Returns:
        A note for each difference.

    Raises:
        UserError: a change of architecture, tokenizer, data or kind of optimizer.
    """
    content = saved_content(checkpoint.path / CONFIG, allow=allow)
    # Keys that did not exist when the run was made, and values derived from others, keep the run's values even if the
    # command line names their group: the rule for a learning rate may be a different one today.
    unnamed = {*legacy_defaults(partial(OmegaConf.select, content)), *DERIVED} - set(named)
    saved = upgraded(content)
    nodes = {node_of(name) for name in named}
    notes = []
    layers, new_layers = OmegaConf.select(saved, LAYERS), OmegaConf.select(cfg, LAYERS)
    if layers != new_layers and "experiment" not in nodes and not any(is_within(node, [LAYERS]) for node in nodes):
        with open_dict(cfg):
            OmegaConf.update(cfg, LAYERS, layers, merge=False)
        notes.append(f"{LAYERS} as in the run (its description has changed since)")
    for group in sorted(DEFAULTS_CHANGED):
        notes += _keep_option(group, cfg, saved, named=named)
    before = dict(flatten(OmegaConf.to_container(saved, resolve=True)))
    after = dict(flatten(OmegaConf.to_container(cfg, resolve=True)))
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new or is_within(key, NOT_SAVED):
            continue
        is_named = "experiment" in nodes or any(is_within(key, [node]) for node in nodes)
        if key in unnamed or not is_named:
            with open_dict(cfg):
                OmegaConf.update(cfg, key, escaped(old), force_add=True)
            notes.append(f"{key}={_text(old)} as in the run (the configuration has {_text(new)} now)")
        elif is_within(key, FIXED) and not PROVEN.fullmatch(key):
            hint = f"the run has {_text(old)}; to start from its weights alone use init_from={checkpoint.run_dir}"
            raise UserError(f"a resumed run cannot change {key}", key=key, value=_text(new), hint=hint)
        else:
            notes.append(f"{key}={_text(new)} from now on (was {_text(old)})")
    return notes


def _keep_option(group: str, cfg: DictConfig, saved: DictConfig, *, named: Iterable[str]) -> list[str]:
    """Put the saved option of a group in place of a different one that nobody chose, because the default has changed.

    A run's own command line gets the former default from :func:`former_choices`; a job of a sweep is composed without.

    Returns:
        A note if the option was replaced.
    """
    old, new = OmegaConf.select(saved, group), OmegaConf.select(cfg, group)
    named = set(named)
    if not isinstance(old, DictConfig) or old.get("_target_") == new.get("_target_") or {group, "experiment"} & named:
        return []
    typed = {key: OmegaConf.select(cfg, key) for key in named if is_within(key, [group])}
    with open_dict(cfg):
        OmegaConf.update(cfg, group, old, merge=False)
        for key, value in typed.items():
            OmegaConf.update(cfg, key, value)
    return [f"{group}: {old.get('_target_')} as in the run (the default is {new.get('_target_')} now)"]


def progress_of(checkpoint: Checkpoint) -> RunProgress:
    """Steps, tokens and sequences that a checkpoint has consumed."""
    state = read_checked(checkpoint)
    return RunProgress(step=state["step"], tokens=state["tokens"], sequences=state["sequences"])


@contextmanager
def naming_saved_setting(resumption: Resumption | None) -> Iterator[None]:
    """When a resumed run does not find its data, say that the path is a saved setting and how to override it."""
    try:
        yield
    except UserError as error:
        key = error.key or ""
        if resumption is None or not PROVEN.fullmatch(key) or is_within(key, resumption.named):
            raise
        saved = "this path comes from the run's saved settings; relative paths are resolved from the current directory;"
        key = "dataset.sources" if key.startswith("dataset.sources.") else key
        hint = f"{error.hint + '; ' if error.hint else ''}{saved} set {key}=… to where the same data is now"
        raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error


def keep_batch(cfg: DictConfig, resumption: Resumption, world_size: int) -> list[str]:
    """Keep the batch of a resumed run on a different number of ranks, unless the command line sets the batch.

    Returns:
        Notes on what changes.

    Raises:
        UserError: the number of ranks does not divide the batch.
    """
    old_world_size = resumption.checkpoint.manifest.get("world_size", 1)
    if old_world_size == world_size or any(f"trainer.{name}" in resumption.named for name in BATCH):
        return []
    size, steps = regroup(planned_batch(cfg, world_size=old_world_size), world_size)
    cfg.trainer.batch_size, cfg.trainer.grad_accum_steps, cfg.trainer.total_batch_tokens = size, steps, None
    notes = [
        f"{world_size} rank(s) instead of {old_world_size}: {size} sequences each in {steps} micro-step(s),"
        " the same batch"
    ]
    if cfg.model.dropout or cfg.model.attn_dropout or cfg.model.layerdrop:
        notes.append("dropout draws from different random streams than with the previous number of ranks")
    return notes


def abandoned_steps(resumption: Resumption, path: Path) -> list[str]:
    """A note on what is lost when a run is resumed from one of its older checkpoints."""
    directory, step = resumption.checkpoint.path.parent, resumption.checkpoint.step
    later = later_than(directory, step)
    if not later or path.absolute() != resumption.checkpoint.run_dir.absolute():
        return []
    return [
        f"back to step {step}: the metrics of later steps are removed now,"
        f" {', '.join(later)} when the next checkpoint is saved"
    ]


def check_same_data(resumption: Resumption, data: RunData) -> None:
    """Refuse to resume on different tokens from those the run was trained on.

    Raises:
        UserError: the fingerprint of a split or of the tokenizer differs.
    """
    saved, current = resumption.checkpoint.manifest["data"], data.fingerprints()
    of_sources = [(name, "dataset") for name in current if "." in name]  # first, because they say which one it is
    for name, key in (*of_sources, ("train", "dataset"), ("val", "dataset"), ("tokenizer", "tokenizer")):
        if name in saved and saved[name] != current[name]:
            # Runs made before the split rules were versioned did not follow links to folders.
            links = "" if "rules" in saved else " (links to folders were not followed when the run was made)"
            hint = (
                f"the run's is {saved[name][:12]}; restore the old data{links},"
                f" or use init_from={resumption.checkpoint.run_dir}"
            )
            value = f"fingerprint {current[name][:12]}"
            raise UserError(
                f"the {data_part(name)} differs from the one the run was trained with", key=key, value=value, hint=hint
            )


def check_resumable(cfg: DictConfig, invocation: Invocation) -> None:
    """Refuse ``resume=`` together with ``checkpoint.enabled=false``.

    Raises:
        UserError: both are set.
    """
    if "resume" in invocation.typed and cfg.resume is not None and not cfg.checkpoint.enabled:
        hint = "a run that saves nothing cannot be resumed again; leave out one of the two settings"
        what = "resume and checkpoint.enabled=false cannot be combined"
        raise UserError(what, key="checkpoint.enabled", value=False, hint=hint)


def is_data_path(key: str | None) -> bool:
    """Whether a key says where data are, of a data set or of a source of a mixture."""
    return key is not None and key.startswith("dataset.") and PROVEN.fullmatch(key) is not None


def node_of(name: str) -> str:
    """The node that a group's options fill in; any other name is a key itself."""
    return next(iter(nodes_of(name)), name)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
