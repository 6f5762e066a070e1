"""``python -m tinyllm.prepare``: tokenize a corpus once, into the cache that all runs share."""

import json
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import resolve_target
from tinyllm.data.batch import TOKENS
from tinyllm.data.prepare import cache_root
from tinyllm.data.run_data import RunData, n_tokens
from tinyllm.data.statistics import as_json, statistics_of
from tinyllm.errors import UserError
from tinyllm.programs.builders import open_corpus, open_data, plain
from tinyllm.programs.data_checks import ROW_ORDER, refuse_start_early, refuse_typed
from tinyllm.programs.data_statistics import show
from tinyllm.programs.statistics_picture import check_picture, draw_statistics
from tinyllm.utils.tables import Column, Table


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Tokenize the corpus, unless the cache has it, and print what came out. Returns the exit code.

    Args:
        cfg: the settings of ``conf/prepare.yaml``.

    Raises:
        UserError: a key has no effect, or the data cannot be prepared.
    """
    hint = "documents are packed when training starts, the prepared data are the same; leave it out"
    refuse_typed(cfg, ROW_ORDER, invocation.typed, hint=hint)
    refuse_start_early(cfg)
    target = resolve_target(plain(cfg.dataset), path="dataset", extra=invocation.allow)
    if cfg.stats and getattr(target, "gives", TOKENS) != TOKENS:
        hint = "there are statistics of texts, token ids and conversations; leave it out"
        raise UserError("no statistics of such data", key="stats", value=True, hint=hint)
    picture = check_picture(cfg.picture)
    data = open_data(*open_corpus(cfg, allow=invocation.allow), lines=not invocation.json)
    facts = {
        "train tokens": n_tokens(data, "train"),
        "val tokens": n_tokens(data, "val"),
        "vocabulary": data.tokenizer.vocab_size,
        "cache": str(cache_root()),
    }
    sources = facts_by_source(data)
    statistics = {name: statistics_of(source) for name, source in data.sources.items()} if cfg.stats else {}
    if picture is not None:
        draw_statistics(statistics, picture)
        facts["picture"] = str(picture)
    if invocation.json:
        in_json = {name: as_json(found) for name, found in statistics.items()}
        more = {"sources": sources} if sources else {}
        more |= {"stats": in_json.get("", in_json)} if in_json else {}
        print(json.dumps(facts | {"notes": list(data.notes)} | more))
        return 0
    for name, value in (*facts.items(), *(("note", note) for note in data.notes)):
        print(f"{name:14} {value:,}" if isinstance(value, int) else f"{name:14} {value}")
    if sources:
        print()
        show_sources(sources)
    for name, found in statistics.items():
        print(f"\n{name}:" if name else "")
        show(found)
    return 0


def facts_by_source(data: RunData) -> dict[str, dict[str, Any]]:
    """Sizes and weight of each source of a mixture; of other data nothing."""
    shares = data.shares()
    return {
        name: {"train tokens": source.train.n_tokens, "val tokens": source.val.n_tokens, "weight": shares[name]}
        for name, source in data.sources.items()
        if name
    }


def show_sources(sources: dict[str, dict[str, Any]]) -> None:
    """Print the sizes and weights of the sources of a mixture."""
    columns = [Column(name="source"), *(Column(name=name, right=True) for name in ("train tokens", "val tokens"))]
    rows = [
        [name, f"{facts['train tokens']:,}", f"{facts['val tokens']:,}", f"{facts['weight']:.4g}"]
        for name, facts in sources.items()
    ]
    Table(columns=[*columns, Column(name="weight", right=True)], rows=rows).show()
