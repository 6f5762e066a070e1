"""``python -m tinyllm.prepare``: tokenize a corpus once, into the cache that all runs share."""

import json

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.data.prepare import cache_root
from tinyllm.data.statistics import as_json, statistics_of
from tinyllm.programs.builders import open_corpus, open_data
from tinyllm.programs.data_statistics import show


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Tokenize the corpus, unless the cache has it, and print what came out. Returns the exit code.

    Args:
        cfg: the settings of ``conf/prepare.yaml``.
    """
    data = open_data(*open_corpus(cfg, allow=invocation.allow), lines=not invocation.json)
    facts = {
        "train tokens": data.train.n_tokens,
        "val tokens": data.val.n_tokens,
        "vocabulary": data.tokenizer.vocab_size,
        "cache": str(cache_root()),
    }
    statistics = statistics_of(data) if cfg.stats else None
    if invocation.json:
        more = {"stats": as_json(statistics)} if statistics else {}
        print(json.dumps(facts | {"notes": list(data.notes)} | more))
        return 0
    for name, value in (*facts.items(), *(("note", note) for note in data.notes)):
        print(f"{name:14} {value:,}" if isinstance(value, int) else f"{name:14} {value}")
    if statistics:
        print()
        show(statistics)
    return 0
