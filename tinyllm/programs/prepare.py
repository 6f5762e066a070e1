"""``python -m tinyllm.prepare dataset=… tokenizer=…``: tokenize once into the shared cache."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation


def main() -> None:
    """Entry point of ``tinyllm-prepare``."""
    from tinyllm.config.cli.main import run

    run("prepare", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    import json

    from tinyllm.data.prepare import cache_root
    from tinyllm.programs.builders import open_corpus, open_data

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
