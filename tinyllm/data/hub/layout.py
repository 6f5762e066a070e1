"""The layout of a data set of the hub: its configurations and splits, and the files that each consists of."""

import ast
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.data.finding import find_files
from tinyllm.data.hub import access
from tinyllm.errors import UserError
from tinyllm.utils.deadline import within
from tinyllm.utils.disk_space import require_space
from tinyllm.utils.files import expand_home, read_json, write_bytes

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""Loaders of ``datasets`` by file name, for files that are given without a layout; any other file is text by lines."""
LISTING = 30.0
"""Seconds within which the hub must list the files of a data set."""
NOT_SETTINGS = {"name", "version", "data_dir", "data_files", "description", "features"}
"""Fields of a configuration of ``datasets`` that say where the data are, not how they are read."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a data set.

    Attributes:
        loader: the loader of ``datasets`` that reads them, such as "parquet".
        settings: its settings as JSON values.
        splits: the files of each split: paths, or, within a repository of the hub, names.
        commit: the commit in the repository; None: the files are on disk.
        size: total bytes of the files on the hub.
    """

    loader: str
    settings: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    commit: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def files(self, split: str, *, key: str) -> list[str]:
        """The files of a split.

        Raises:
            UserError: there is no such split; names those there are.
        """
        if split not in self.splits:
            there = ", ".join(self.splits)
            hint = f"there {'are' if len(self.splits) > 1 else 'is'} {there}"
            if key != "dataset.split":
                hint += f"; {key}=null does without"
            raise UserError("the data set has no such split", key=key, value=split, hint=hint)
        return self.splits[split]


def on_disk(path: str, config: str | None) -> Layout:
    """The layout of a copy on disk: a directory as the hub has it, or files, which then are the split ``train``.

    Raises:
        UserError: nothing is there, or no layout that ``datasets`` reads.
    """
    place = expand_home(path)
    if not place.is_dir():
        listing = find_files(path, key="dataset.path")
        names = [file.path for file in listing.files]
        suffix = os.path.splitext(re.sub(r"\.(gz|zst|xz|bz2)$", "", names[0].lower()))[1]
        settings = {"sep": "\t"} if suffix == ".tsv" else {}
        return Layout(loader=FORMATS.get(suffix, "text"), settings=settings, splits={"train": names})
    if config and (place / config).is_dir() and not (place / "README.md").exists():
        place, config = place / config, None  # a copy without the page that names the configurations
    layout = _read(str(place), config, key="dataset.path", shown=path)
    return layout


def on_hub(name: str, config: str | None, revision: str | None) -> Layout:
    """The layout of a data set of the hub: as the hub has it now or, if it does not answer, as it was when its files
    were fetched into the cache of the hub's library.

    Raises:
        UserError: there is no such data set or configuration, no access to it, or no answer and nothing in the cache.
    """
    try:
        commit = access.commit_of(name, revision)
    except access.NoAnswerError as reason:
        return _remembered(name, config, revision, reason)
    kept = _recall(name, config, revision)
    if kept is not None and kept.commit == commit:
        return kept
    try:
        with access.refusals(name, revision), access.broken_download(name):
            read = partial(_read, name, config, key="dataset.name", shown=name, revision=commit)
            layout = within(LISTING, read)  # the libraries would try again for minutes
    except access.NoAnswerError as reason:
        return _remembered(name, config, revision, reason)
    _remember(layout, name, config, revision)
    return layout


def _read(place: str, config: str | None, *, key: str, shown: str, revision: str | None = None) -> Layout:
    """What ``datasets`` finds at a place."""
    datasets = access.datasets_library()
    try:
        builder = datasets.load_dataset_builder(place, config, revision=revision)
    except ValueError as error:
        raise _unknown_config(error, config, key=key, shown=shown) or _no_layout(error, key=key, shown=shown) from error
    except (FileNotFoundError, datasets.exceptions.DatasetsError, RuntimeError) as error:
        if revision is not None and isinstance(error, FileNotFoundError) and _is_network(error):
            raise
        raise _no_layout(error, key=key, shown=shown) from error
    loader = type(builder).__mro__[1].__module__.split(".")[-1]
    values = {one.name: getattr(builder.config, one.name) for one in fields(builder.config)}
    defaults = type(builder.config)()
    settings = {
        name: value
        for name, value in values.items()
        if name not in NOT_SETTINGS and value != getattr(defaults, name) and _is_json(value)
    }
    splits = {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
    if not splits:
        raise _no_layout(ValueError("it names no data files"), key=key, shown=shown)
    if revision is None:
        return Layout(loader=loader, settings=settings, splits=splits)
    prefix = re.compile(r"hf://datasets/[^@]*@[^/]*/")
    named = {split: [prefix.sub("", file) for file in files] for split, files in splits.items()}
    wanted = sorted({file for files in named.values() for file in files})
    infos = access.hub().HfApi().get_paths_info(place, wanted, repo_type="dataset", revision=revision)
    sizes = {info.path: int(info.size) for info in infos}
    return Layout(loader=loader, settings=settings, splits=named, commit=revision, sizes=sizes)


def _is_network(error: BaseException) -> bool:
    """Whether an error was caused by a failed request."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _unknown_config(error: ValueError, config: str | None, *, key: str, shown: str) -> UserError | None:
    """The error of a configuration that is missing or unknown; None: the error is about something else."""
    listed = re.search(r"\[[^\[\]]*\]", str(error))
    if "onfig" not in str(error) or listed is None:
        return None
    try:
        known = [str(one) for one in ast.literal_eval(listed[0])]
    except (ValueError, SyntaxError):
        return None
    shown_names = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    similar = get_close_matches(str(config), known, 1)
    hint = f"one of {shown_names}" + (f"; did you mean {similar[0]}?" if config and similar else "")
    what = "the data set has no such configuration" if config else "the data set has several configurations"
    return UserError(what, key="dataset.config", value=config, file=shown, hint=hint)


def _no_layout(error: Exception, *, key: str, shown: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    what = "no data set that the library datasets can read"
    hint = f"a directory as the hub has it, with Parquet, Arrow, JSON, CSV or text files ({reason})"
    return UserError(what, key=key, value=shown, hint=hint)


def _record(name: str, config: str | None, revision: str | None) -> Path:
    """Where the layout is kept: with the hub's cache, so that it travels with it to another machine."""
    home = Path(access.hub().constants.HF_HOME)
    return (
        home
        / "tinyllm"
        / name.replace("/", "--")
        / f"{config or 'default'}@{revision or 'main'}.json".replace("/", "--")
    )


def _remember(layout: Layout, name: str, config: str | None, revision: str | None) -> None:
    file = _record(name, config, revision)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, json.dumps(asdict(layout)).encode())


def _recall(name: str, config: str | None, revision: str | None) -> Layout | None:
    try:
        return Layout(**read_json(_record(name, config, revision)))
    except (UserError, OSError, TypeError):
        return None


def _remembered(name: str, config: str | None, revision: str | None, reason: access.NoAnswerError) -> Layout:
    kept = _recall(name, config, revision)
    if kept is None:
        raise no_answer(name, reason) from reason
    return kept


def no_answer(name: str, reason: object) -> UserError:
    """The hub is out of reach, and the data set is not in the cache."""
    home = access.hub().constants.HF_HOME
    hint = f"copy the cache of another machine to {home} (HF_HOME), or give a copy of the data set: dataset.path=…"
    hint += f" ({reason})"
    return UserError("no answer from the hub", key="dataset.name", value=name, hint=hint)


def fetched(layout: Layout, name: str, files: Sequence[str], *, offline: bool) -> list[str]:
    """The paths of files of the hub on this machine, downloaded where they are missing.

    Raises:
        UserError: the hub is out of reach, the download broke, or the disk is too small.
    """
    assert layout.commit is not None
    here = {file: access.in_cache(name, file, layout.commit) for file in files}
    missing = [file for file, path in here.items() if path is None]
    if missing:
        if offline:
            raise no_answer(name, f"{missing[0]} is not in the cache")
        home = access.hub().constants.HF_HUB_CACHE
        needed = sum(layout.sizes.get(file, 0) for file in missing)
        hint = "set HF_HOME to a larger disk, or take a part: dataset.streaming=true dataset.max_tokens=…"
        require_space(needed, folder=home, what=f"{name}", hint=hint)
        try:
            here |= dict(zip(missing, access.download(name, missing, layout.commit), strict=True))
        except access.NoAnswerError as reason:
            raise no_answer(name, reason) from reason
    return [str(here[file]) for file in files]
