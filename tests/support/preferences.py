"""Files of preferences, and pairs of random ids."""

import json
import random
from pathlib import Path

import numpy as np

from tests.support.training_runs import WORDS
from tinyllm.data.preferences.pairs import Answered, PairSplit


def write_preferences(path: Path, *, n_pairs: int = 40, seed: int = 0) -> Path:
    """JSON lines of prompts, each with a short answer that was chosen and a longer one that was not."""
    draw = random.Random(seed)
    lines = []
    for number in range(n_pairs):
        prompt = f"{draw.choice(WORDS)} {draw.choice(WORDS)} {number}:"
        rejected = " ".join(draw.choices(WORDS, k=draw.randint(2, 4)))
        lines.append({"prompt": prompt, "chosen": draw.choice(WORDS), "rejected": rejected})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def random_pairs(n_pairs: int, *, vocab_size: int = 17, longest: int = 10, seed: int = 0) -> PairSplit:
    """Pairs of unequal lengths; of every row at least one token is the prompt's and one the answer's."""
    draw = np.random.default_rng(seed)

    def answered() -> Answered:
        n_prompt, n_answer = draw.integers(1, longest // 2, 2)
        ids = draw.integers(0, vocab_size, n_prompt + n_answer)
        return Answered(ids, np.arange(len(ids)) >= n_prompt)

    return PairSplit.of("train", [(answered(), answered()) for _ in range(n_pairs)], drops_long=False, first=0)
