"""``python -m tinyllm.prepare``: tokenize a corpus once, into the cache that all runs share."""

import json

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.data.prepare import cache_root
from tinyllm.programs.builders import open_corpus, open_data


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
        "notes": list(data.notes),
    }
    if invocation.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        for one in value if isinstance(value, list) else [value]:
            print(
                f"{name.removesuffix('s') if isinstance(value, list) else name:14} {one:,}"
                if isinstance(one, int)
                else f"{name:14} {one}"
            )
    return 0
