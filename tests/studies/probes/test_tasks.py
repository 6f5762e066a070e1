"""Synthetic tasks: every answer follows from the preceding tokens, and chance is as stated."""

import copy
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from scipy.stats import chisquare

import tinyllm
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.studies.probes.copying import Copying
from tinyllm.studies.probes.induction import Induction
from tinyllm.studies.probes.length import Length
from tinyllm.studies.probes.recall import Recall
from tinyllm.studies.probes.stream import batches_to_test, batches_to_train, generator
from tinyllm.studies.probes.task import Task, check_disjoint
from tinyllm.studies.probes.trials import tasks_of

N = 200
RECALL = Recall(pairs=4, keys=9, values=7, fillers=3, length=20)
COPYING = Copying(symbols=5, alphabet=8, length=14)
INDUCTION = Induction(text=9, passage=4, passages=3, alphabet=12)
TASKS = {"recall": RECALL, "copying": COPYING, "induction": INDUCTION}
SMALLEST = {
    "recall": Recall(pairs=1, keys=2, values=3, fillers=2, length=4),
    "copying": Copying(symbols=2, alphabet=3, length=3),
    "induction": Induction(text=3, passage=2, passages=1, alphabet=3),
}
"""Tasks with so few sequences that all of them can be enumerated."""


@cache
def composed() -> DictConfig:
    return tinyllm.compose("examples=200", program="probe")


def drawn(task: Task, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.draw(n, np.random.default_rng(seed))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_shapes_ids_and_number_of_questions(task: Task) -> None:
    inputs, targets = drawn(task)
    assert inputs.shape == targets.shape == (N, task.seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    assert set(np.unique(inputs)) == set(range(task.vocab_size)), "every id occurs, and no other does"
    asked = targets != IGNORE
    assert (asked.sum(axis=1) == task.questions).all()
    assert set(targets[asked]) <= set(range(task.vocab_size))


def test_recall_asks_for_the_value_of_each_key_once() -> None:
    for row, wanted in zip(*drawn(RECALL), strict=True):
        pairs = dict(row[:8].reshape(4, 2).tolist())
        assert len(pairs) == len(set(pairs.values())) == 4
        assert all(key < 9 <= value < 16 for key, value in pairs.items())
        questions = [(row[i], wanted[i]) for i in range(8, 20) if wanted[i] != IGNORE]
        assert dict(questions) == pairs and len(questions) == 4
        assert all(row[i] >= 16 for i in range(8, 20) if wanted[i] == IGNORE), "keys occur only as questions"
        assert (wanted[:8] == IGNORE).all()


def test_recall_questions_are_uniform_after_the_pairs() -> None:
    _, targets = drawn(RECALL, 2000)
    counts = (targets[:, 8:] != IGNORE).sum(axis=0)
    assert chisquare(counts).pvalue > 0.001


def test_copying_asks_for_the_symbols_in_order() -> None:
    places = Counter[int]()
    for row, wanted in zip(*drawn(COPYING), strict=True):
        symbols = [token for token in row.tolist() if token < 8]
        assert len(set(symbols)) == 5
        assert row[14:].tolist() == [9] * 5
        assert wanted[14:].tolist() == symbols and (wanted[:14] == IGNORE).all()
        places.update(np.flatnonzero(row[:14] < 8).tolist())
    assert set(places) == set(range(14)), "a fixed distance does not lead to the answer"


def test_induction_questions_were_followed_only_by_their_answer() -> None:
    for row, wanted in zip(*drawn(INDUCTION), strict=True):
        assert len(set(row[:9])) == 9
        for i in np.flatnonzero(wanted != IGNORE):
            before = [after for token, after in pairwise(row[: i + 1]) if token == row[i] and after != 12]
            assert set(before) == {wanted[i]}
            assert wanted[i] == row[i + 1], "the passage goes on with it"
    assert (drawn(INDUCTION)[1][:, :9] == IGNORE).all()


@pytest.mark.parametrize(
    ("name", "answers"), [("recall", lambda row: row[1:8:2]), ("copying", lambda row: row[row < 8])]
)
def test_one_of_the_shown_answers_is_right_once_in_each_sequence(name: str, answers: object) -> None:
    task = TASKS[name]
    for row, wanted in zip(*drawn(task), strict=True):
        for place in range(task.questions):
            guess = answers(row)[place]  # type: ignore[operator]
            assert (wanted == guess).sum() == 1 == task.chance * task.questions


def test_induction_answers_are_uniform_over_six_positions() -> None:
    inputs, targets = drawn(INDUCTION, 3000)
    asked = targets[:, 9:].reshape(3000, 3, 5)
    for offset in (1, 2, 3):
        places = (inputs[:, None, :9] == asked[:, :, offset, None]).argmax(axis=2)
        counts = np.bincount(places.ravel() - offset, minlength=6)
        assert len(counts) == 6 == 1 / INDUCTION.chance
        assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("task", SMALLEST.values(), ids=list(SMALLEST))
def test_sequences_are_uniform_and_their_number_is_as_stated(task: Task) -> None:
    counts = Counter(tuple(row) for row in drawn(task, 6000)[0].tolist())
    assert len(counts) == round(2**task.bits)
    assert chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize(
    "task",
    [
        Recall(pairs=2, keys=9, values=7, fillers=3, length=10),
        Copying(symbols=3, alphabet=9, length=14),
        Induction(text=4, passage=3, passages=2, alphabet=12),
    ],
    ids=list(TASKS),
)
def test_longer_task_has_the_same_ids_and_more_of_everything_else(task: Task) -> None:
    assert task.longer(1) == task
    more = task.longer(3)
    assert (more.vocab_size, more.seq_len, more.questions) == (task.vocab_size, 3 * task.seq_len, 3 * task.questions)


def test_length_trains_at_one_length_and_tests_at_multiples() -> None:
    short = Induction(text=4, passage=3, passages=2, alphabet=16)
    task = Length(task=short, factors=(4, 1, 2))
    assert all((ours == theirs).all() for ours, theirs in zip(drawn(task), drawn(short), strict=True))
    assert (task.seq_len, task.questions, task.chance) == (short.seq_len, short.questions, short.chance)
    tests = task.tests()
    assert list(tests) == ["@1x", "@2x", "@4x"]
    assert [test.seq_len for test in tests.values()] == [12, 24, 48]
    assert [test.chance for test in tests.values()] == [1 / 2, 1 / 6, 1 / 14]


def test_batches_depend_on_the_seed_but_not_on_micro_batches() -> None:
    def first(n: int, **more: int) -> np.ndarray:
        batches = batches_to_train(RECALL, **{"seed": 1, "start_step": 0} | more)  # type: ignore[arg-type]
        return np.concatenate([next(batches).inputs.numpy() for _ in range(n)])

    whole = first(2, batch_size=4, grad_accum_steps=1)
    assert (whole == first(4, batch_size=2, grad_accum_steps=2)).all()
    assert (whole[4:] == first(1, batch_size=4, grad_accum_steps=1, start_step=1)).all()
    assert (whole != first(2, batch_size=4, grad_accum_steps=1, seed=2)).any()
    assert (whole[:4] != whole[4:]).any()


def test_test_sequences_do_not_depend_on_the_batch_size() -> None:
    def all_of(batch_size: int) -> np.ndarray:
        batches = batches_to_test(RECALL, seed=1, examples=10, batch_size=batch_size)
        return np.concatenate([batch.inputs.numpy() for batch in batches])

    assert all_of(3).shape == (10, 20)
    assert (all_of(3) == all_of(16)).all()


def test_training_and_test_use_different_random_streams() -> None:
    numbers = [generator(*where).integers(2**62) for where in ((0, "train", 0), (0, "test", 0), (1, "train", 0))]
    assert len(set(numbers)) == 3


def test_default_tasks_share_no_sequence_between_training_and_test() -> None:
    for name, task in tasks_of(composed()).items():
        batches = batches_to_train(task, seed=0, start_step=0, batch_size=50, grad_accum_steps=1)
        trained = {tuple(row) for _ in range(20) for row in next(batches).inputs.tolist()}
        tested = {
            tuple(row)
            for batch in batches_to_test(task, seed=0, examples=200, batch_size=50)
            for row in batch.inputs.tolist()
        }
        assert len(trained) == 1000 and len(tested) == 200, name
        assert not trained & tested, name


def test_task_with_too_few_sequences_is_refused() -> None:
    few = SMALLEST["recall"]  # 2·3·2·2 = 24
    with pytest.raises(UserError, match=r"too few distinct sequences \(tasks.recall\): there are 2\^5, but"):
        check_disjoint(few, trained=10, tested=10, key="tasks.recall")
    with pytest.raises(UserError, match=r"\(tasks\.copying\)"):
        tasks_of(OmegaConf.merge(composed(), {"tasks": {"copying": {"symbols": 3, "length": 6}}}))


@pytest.mark.parametrize(
    ("changed", "value", "named"),
    [
        ("tasks.recall.pairs", 33, "tasks.recall.keys"),
        ("tasks.recall.pairs", 0, "tasks.recall.pairs"),
        ("tasks.recall.length", 11, "tasks.recall.length"),
        ("tasks.copying.alphabet", 7, "tasks.copying.alphabet"),
        ("tasks.induction.passage", 1, "tasks.induction.passage"),
        ("tasks.induction.alphabet", 11, "tasks.induction.alphabet"),
        ("tasks.length.factors", [1, 8], "tasks.length.task.alphabet"),
        ("tasks.length.factors", [], "tasks.length.factors"),
    ],
)
def test_invalid_sizes_name_their_key(changed: str, value: object, named: str) -> None:
    cfg = copy.deepcopy(composed())
    OmegaConf.update(cfg, changed, value)
    with pytest.raises(UserError) as refused:
        tasks_of(cfg)
    assert refused.value.key == named
