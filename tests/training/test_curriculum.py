"""Sequence-length curriculum: lengths, counted tokens, the order of the data, and refused settings."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import make_split
from tests.data.test_loader import steps_of
from tests.support.training_runs import SMALL, logged, metrics, train
from tests.training.test_trainer import small_model
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.training.batch_plan import BatchPlan, plan_steps
from tinyllm.training.curriculum import Curriculum, Lengths

RAMP = ("model.max_seq_len=40", "curriculum.enabled=true")


def by_hand(step: int, *, seq_len: int, start: int, steps: int) -> int:
    """The length of a step, computed with exact fractions."""
    if step >= steps:
        return seq_len
    return int(start + Fraction((seq_len - start) * step, steps)) // 8 * 8


@st.composite
def ramps(draw: st.DrawFn) -> Lengths:
    seq_len = draw(st.integers(9, 300))
    return Lengths(seq_len=seq_len, start=draw(st.integers(8, seq_len - 1)), steps=draw(st.integers(1, 200)))


@given(lengths=ramps(), n=st.integers(0, 250), step=st.integers(0, 220))
def test_lengths_and_their_sum(lengths: Lengths, n: int, step: int) -> None:
    shape = {"seq_len": lengths.seq_len, "start": lengths.start, "steps": lengths.steps}
    expected = [by_hand(s, **shape) for s in range(500)]
    assert [lengths.at(s) for s in range(500)] == expected
    assert lengths.total(n) == sum(expected[:n])
    assert lengths.distinct(step) == sorted(set(expected[step:]))
    assert expected == sorted(expected) and expected[0] == lengths.start // 8 * 8
    assert all(length % 8 == 0 for length in expected[: lengths.steps])


@given(
    seq_len=st.integers(9, 80),
    start=st.none() | st.just(8),
    steps=st.none() | st.integers(1, 40),
    tokens=st.integers(30_000, 200_000),
)
def test_a_horizon_in_tokens_counts_the_short_sequences(
    seq_len: int, start: int | None, steps: int | None, tokens: int
) -> None:
    batch = BatchPlan(batch_size=3, grad_accum_steps=2, seq_len=seq_len, world_size=1)
    curriculum = Curriculum(enabled=True, start_seq_len=start, steps=steps, seq_len=seq_len)
    horizon = {"max_steps": None, "max_tokens": tokens, "max_epochs": None}
    n = plan_steps(batch, **horizon, epoch_tokens=0, curriculum=curriculum)
    taken = [6 * sum(curriculum.lengths(m).at(s) for s in range(m)) for m in (n, n + 1)]
    assert taken[0] <= tokens < taken[1]
    as_epochs = horizon | {"max_tokens": None, "max_epochs": 2.0}
    assert plan_steps(batch, **as_epochs, epoch_tokens=tokens // 2, curriculum=curriculum) in (n - 1, n)


def test_defaults_of_the_curriculum() -> None:
    at = {"enabled": True, "start_seq_len": None, "steps": None}
    assert Curriculum(**at, seq_len=1024).lengths(100) == Lengths(seq_len=1024, start=128, steps=50)
    assert Curriculum(**at, seq_len=100).lengths(7) == Lengths(seq_len=100, start=8, steps=3)
    assert Curriculum(**at, seq_len=32).lengths(1) == Lengths(seq_len=32, start=8, steps=0)
    assert Curriculum(**at | {"enabled": False}, seq_len=4).lengths(9).distinct() == [4]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seq_len": 8}, r"curriculum.enabled=true\): trainer.seq_len=8 must be above 8"),
        ({"start_seq_len": 7}, r"curriculum.start_seq_len=7\): from 8 to 39, below trainer.seq_len"),
        ({"start_seq_len": 40}, r"curriculum.start_seq_len=40\): from 8 to 39"),
        ({"steps": 11}, r"longer than the run \(curriculum.steps=11\): at most the horizon of 10 steps"),
    ],
)
def test_what_is_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Curriculum(**{"enabled": True, "start_seq_len": None, "steps": None, "seq_len": 40} | settings).check(10)


def test_a_ramp_longer_than_the_run_is_refused_before_a_directory_is_made(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        train("dataset=text", corpus, *SMALL, *RAMP, "trainer.max_steps=4", "curriculum.steps=5", f"run.dir={run}") == 2
    )
    assert capsys.readouterr().err.startswith("error: longer than the run (curriculum.steps=5)")
    assert not run.exists()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("splits"), np.random.default_rng(0).integers(0, 1000, 3000))


@pytest.mark.parametrize("workers", [0, 2])
def test_short_windows_are_the_beginnings_of_full_ones(split: Split, workers: int) -> None:
    steps, length_at = range(3, 9), {3: 2, 4: 2, 5: 5, 6: 7, 7: 10, 8: 10}.__getitem__
    short = steps_of(split, steps, 3, accum=2, world=2, length_at=length_at, workers=workers)
    whole = steps_of(split, steps, 12)
    for step, cut, full in zip(steps, short, whole, strict=True):
        assert np.array_equal(cut, full[:, : length_at(step) + 1])


def test_tokens_and_flops_count_the_real_lengths(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ramp = (*RAMP, "curriculum.start_seq_len=8", "curriculum.steps=8")
    shared = ("dataset=text", corpus, *SMALL, *ramp, "trainer.grad_accum_steps=2")
    assert train(*shared, "trainer.max_tokens=2000", f"run.dir={run}") == 0
    lengths = [by_hand(s, seq_len=40, start=8, steps=8) for s in range(11)]
    assert lengths == [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 40]
    tokens = [8 * sum(lengths[: s + 1]) for s in range(11)]  # 8 sequences a step
    assert tokens[9] <= 2000 < tokens[10]
    assert logged(run, "tokens") == logged(run, "train/tokens") == tokens[:10]
    model = small_model("model.max_seq_len=40")
    padding = 2 * 32 * (20 - 18)  # its vocabulary and that of the corpus
    flops = [3 * (model.flops_per_token(length) - padding) for length in lengths]  # type: ignore[operator]
    assert logged(run, "flops") == [
        sum(8 * length * flop for length, flop in zip(lengths[:n], flops, strict=False)) for n in range(1, 11)
    ]
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))["info"]
    assert (info["planned_tokens"], info["max_steps"], info["tokens_per_step"]) == (tokens[9], 10, 320)
    assert any("8 tokens at first" in note for note in info["notes"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    work = [record["speed/mfu"] / record["speed/tokens_per_s"] for record in records]  # of a token, over the peak
    assert [one / work[0] for one in work] == pytest.approx([flop / flops[0] for flop in flops[:10]])


@pytest.mark.slow
def test_a_step_of_the_ramp_equals_a_step_of_a_run_at_that_length(corpus: str, tmp_path: Path) -> None:
    """The first loss equals that of the same windows shortened; after the ramp, steps have the full length."""
    shared = ["dataset=text", corpus, *SMALL, "model.max_seq_len=40", "trainer.max_steps=4", "optimizer.lr=0"]
    assert train(*shared, "curriculum.enabled=true", "curriculum.steps=2", f"run.dir={tmp_path / 'ramp'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'full'}") == 0
    ramp, full = logged(tmp_path / "ramp", "train/loss"), logged(tmp_path / "full", "train/loss")
    assert ramp[2:] == full[2:] and ramp[0] != full[0]
    assert [r["tokens"] for r in metrics(tmp_path / "ramp")] == [32, 32 + 96, 128 + 160, 288 + 160]
