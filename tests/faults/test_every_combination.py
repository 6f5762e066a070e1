"""An interrupted run equals an uninterrupted one, for every combination of parts.

In CI every optimizer, schedule and feature occurs in one of the runs; every pair of them, and all combinations, are for
who asks (``exhaustive``).
Options are those of conf/.
"""

from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from tests.support.copies import run
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.config.option_files import conf_dir

N, STOP = 6, 3


def options(group: str) -> list[str]:
    """The options of a group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


FEATURES = {
    "plain": (),
    "ema": ("ema.enabled=true", "ema.start_step=2", "ema.update_every=2"),
    "curriculum": ("curriculum.enabled=true", "curriculum.start_seq_len=8", "curriculum.steps=4"),
    "accumulation": ("trainer.grad_accum_steps=3", "trainer.batch_size=2", "model.dropout=0.1"),
    "workers": ("dataloader.workers=1", "model.layerdrop=0.3"),
    "fp16": ("trainer.precision=fp16",),
    "bf16": ("trainer.precision=bf16", "trainer.activation_checkpointing=true"),
    "in the background": ("checkpoint.asynchronous=true", "trainer.checkpoint_every=1"),
    **{
        f"moe {kind}": (f"moe={kind}", "model.block.moe.n_experts=4", "model.block.moe.n_active=2")
        for kind in options("moe")
        if kind != "none"
    },
}


def covering(*lists: list[str]) -> list[tuple[str, ...]]:
    """A small set of combinations in which every pair of entries of two lists occurs."""

    def pairs(one: tuple[str, ...]) -> set[tuple[tuple[int, str], tuple[int, str]]]:
        return set(combinations(enumerate(one), 2))

    everything = list(product(*lists))
    missing = set().union(*map(pairs, everything))
    chosen = []
    while missing:
        best = max(everything, key=lambda one: len(pairs(one) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


OPTIMIZERS, SCHEDULES = options("optimizer"), options("schedule")
AXES = (OPTIMIZERS, SCHEDULES, list(FEATURES))
PAIRS = covering(*AXES)
EACH_ONCE = [
    (OPTIMIZERS[index % len(OPTIMIZERS)], SCHEDULES[(index + index // len(OPTIMIZERS)) % len(SCHEDULES)], feature)
    for index, feature in enumerate(FEATURES)
]
"""Schedules are shifted against optimizers, so that all pairs meet."""


def for_who_asks(chosen: Iterable[tuple[str, ...]], everything: Iterable[tuple[str, ...]]) -> list[Any]:
    """Test parameters; those that are not selected are marked exhaustive."""
    chosen = set(chosen)
    return [
        pytest.param(*one, id="-".join(one), marks=() if one in chosen else pytest.mark.exhaustive)
        for one in everything
    ]


def test_every_pair_of_options_occurs() -> None:
    for first, second in combinations(range(3), 2):
        assert {(one[first], one[second]) for one in PAIRS} == set(product(AXES[first], AXES[second]))
    for chosen in (EACH_ONCE, [one[1:] for one in ON_TWO_RANKS]):
        assert [set(entries) for entries in zip(*chosen, strict=True)] == [set(axis) for axis in AXES]
    assert {strategy for strategy, *_ in ON_TWO_RANKS} == {"ddp", "fsdp"}
    assert set(ON_TWO_RANKS) <= set(EVERYTHING_ON_TWO_RANKS)
    assert {"adamw", "adamw8bit", "lion", "muon"} <= set(OPTIMIZERS)
    assert {"constant", "cosine", "linear", "wsd"} <= set(SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "schedule", "feature"), for_who_asks(EACH_ONCE, product(*AXES)))
def test_an_interrupted_run_is_bitwise_equal(
    optimizer: str, schedule: str, feature: str, corpus: str, tmp_path: Path
) -> None:
    shared = ["dataset=text", corpus, *SMALL, f"trainer.max_steps={N}", "trainer.eval_every=2", "optimizer.lr=2e-3"]
    shared += [f"optimizer={optimizer}", f"schedule={schedule}", *FEATURES[feature]]
    assert train(*dict.fromkeys(shared), f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*dict.fromkeys(shared), f"run.dir={tmp_path / 'parts'}", f"trainer.stop_after_steps={STOP}") == 0
    assert digest(tmp_path / "parts") != digest(tmp_path / "whole")
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert [record["step"] for record in metrics(tmp_path / "whole")] == list(range(1, N + 1))


@pytest.fixture(scope="module")
def tokens(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting that selects the small text whose tokens are cached."""
    place = tmp_path_factory.mktemp("tokens") / "run"
    assert train(*SMALL, "dataset=text", corpus, "trainer.max_steps=1", f"run.dir={place}") == 0
    return corpus


ONLY_WHOLE = "adamw8bit"
"""Its bytes are not of single rows."""
ON_TWO_RANKS = [
    ("ddp" if one[0] == ONLY_WHOLE or index % 3 == 0 else "fsdp", *one) for index, one in enumerate(EACH_ONCE)
]
EVERYTHING_ON_TWO_RANKS = [one for one in product(("ddp", "fsdp"), *AXES) if one[:2] != ("fsdp", ONLY_WHOLE)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "optimizer", "schedule", "feature"),
    for_who_asks(ON_TWO_RANKS, EVERYTHING_ON_TWO_RANKS),
)
def test_an_interrupted_run_on_two_ranks_is_bitwise_equal(
    strategy: str, optimizer: str, schedule: str, feature: str, tokens: str, tmp_path: Path
) -> None:
    shared = ["dataset=text", tokens, *SMALL, f"trainer.max_steps={N}", "trainer.eval_every=2", "optimizer.lr=2e-3"]
    shared += [f"strategy={strategy}", f"optimizer={optimizer}", f"schedule={schedule}", *FEATURES[feature]]
    run(2, tmp_path / "whole", *dict.fromkeys(shared))
    run(2, tmp_path / "parts", *dict.fromkeys(shared), f"trainer.stop_after_steps={STOP}")
    run(2, tmp_path / "parts", *dict.fromkeys(shared), "resume=auto")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
