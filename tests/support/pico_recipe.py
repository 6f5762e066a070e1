"""A recipe of stages of some steps each, with a model of 25,000 parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SETTINGS = [
    *("model=pico", "model.d_model=16", "model.n_heads=2", "model.max_seq_len=192", "model.init_std=0.02"),
    *("tokenizer=byte", "tokenizer.special_tokens=standard", "optimizer=adamw", "optimizer.lr=3e-3"),
    *("trainer.batch_size=2", "trainer.precision=fp32", "trainer.checkpoint_every=1", "trainer.log_every=1"),
    "trainer.sample_every=0",
]
TASKS = ["dataset=tasks", "dataset.families=[words]", "dataset.n_train=64", "dataset.n_val=4"]
LEARNING = [*("trainer.max_steps=60", "trainer.eval_every=60"), *("trainer.batch_size=8", "optimizer.lr=1e-2")]
GRPO = [
    *(*TASKS, "objective=grpo", "reward=[length]", "reward.length.target=2", "tools=python_expression"),
    *("objective.group_size=4", "objective.max_new_tokens=6", "schedule=constant"),
]


def recipe(text: Path, *, steps: int = 3, learns: bool = False) -> dict[str, Any]:
    """Language, conversations, pairs, preferences, and rewards.

    Args:
        text: what the first stage trains on.
        learns: train on conversations until some answers end and can be written to a file, as pairs must.
    """
    end = [f"trainer.max_steps={steps}", f"trainer.eval_every={steps}"]
    pairs = ["dataset=tasks", "dataset.families=[words]", "reward=[length]", "reward.length.target=1"]
    valid = ["dataset.val_fraction=0.3"]
    return {
        "settings": SETTINGS,
        "stages": [
            {"name": "language", "settings": ["dataset=text", f"dataset.path={text}", *end]},
            {"name": "tools", "settings": [*TASKS, *end, *(LEARNING if learns else ())]},
            {
                "name": "pairs",
                "program": "pairs",
                "settings": [*pairs, "n_pairs=24", "n_prompts=1000", "n_samples=8", "max_new_tokens=40"],
            },
            {
                "name": "preference",
                "settings": ["objective=dpo", "dataset=preferences", "dataset.path=@pairs", *valid, *end],
            },
            {"name": "reward", "settings": [*GRPO, *end]},
        ],
        "measures": [
            {"name": "text", "settings": ["dataset=text", f"dataset.path={text}"], "shows": {"bpb": "val/bpb"}},
            {
                "name": "tasks",
                "settings": [*TASKS, "answers.max_new_tokens=6"],
                "shows": {"exact": "task/exact", "ended": "task/ended"},
                "since": "tools",
            },
        ],
        "prompts": ["the a of"],
        "chat": ["max_new_tokens=6"],
    }


def write_recipe(path: Path, content: dict[str, Any], *, without: Sequence[str] = ()) -> Path:
    """Write a recipe as the yaml file of a user.

    Args:
        without: stages to leave out.
    """
    stages = [stage for stage in content["stages"] if stage["name"] not in without]
    path.write_text(yaml.safe_dump(content | {"stages": stages}), encoding="utf-8")
    return path
