"""Generated problems: right answers, their own split each, and a pure function of seed and number."""

import re

import pytest

from tinyllm.data.tasks.answers import SENTENCES, SHORT, answer_in
from tinyllm.data.tasks.arithmetic import Arithmetic
from tinyllm.data.tasks.lookups import modules, parameters
from tinyllm.data.tasks.phrasings import PHRASINGS, UNSEEN, phrasings
from tinyllm.data.tasks.problem import INPUTS, SIDES, Dice, Family, side_of
from tinyllm.data.tasks.task_set import FAMILIES as BY_NAME
from tinyllm.data.tasks.words import words
from tinyllm.utils.expressions import evaluate

FAMILIES = list(BY_NAME.values())


@pytest.mark.parametrize("operation", PHRASINGS)
def test_phrasings(operation: str) -> None:
    every = PHRASINGS[operation]
    assert len(set(every)) == len(every)
    seen, unseen = phrasings(operation, unseen=False), phrasings(operation, unseen=True)
    assert len(seen) >= 20 and len(unseen) == UNSEEN and not set(seen) & set(unseen)
    assert len({frozenset(re.findall(r"\{(\w)\}", phrasing)) for phrasing in every}) == 1, "all name the same parts"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_split_has_a_problem_of_another(family: Family) -> None:
    keys = {
        side: {family.problem(Dice(3, i), side, unseen=False).key for i in range(120)}
        for side in ("train", "val", "test")
    }
    assert all(len(found) > 10 for found in keys.values())
    assert not keys["train"] & keys["val"] and not keys["train"] & keys["test"] and not keys["val"] & keys["test"]
    for side, found in keys.items():
        assert {side_of(key) for key in found} == {side}


@pytest.mark.exhaustive
def test_no_split_has_a_problem_of_another_in_a_million_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 problems of each family, for which a million are drawn, most of them thrown away for another split."""
    draws, seen = 0, dict[str, str]()

    def counted(key: str) -> str:
        nonlocal draws
        draws += 1
        return side_of(key)

    monkeypatch.setattr("tinyllm.data.tasks.problem.side_of", counted)
    for family in FAMILIES:
        for i in range(40_000):
            side = ("train", "val", "test")[i % 3]
            key = family.problem(Dice(11, i), side, unseen=i % 7 == 0).key
            assert seen.setdefault(key, side) == side, key
    assert draws > 10**6 and len(seen) > 10_000


def test_the_sides_have_eight_one_and_one_tenth() -> None:
    assert sorted(residue for residues in SIDES.values() for residue in residues) == list(range(10))
    sides = [side_of(f"key {i}") for i in range(3000)]
    assert abs(sides.count("train") / 3000 - 0.8) < 0.03
    assert abs(sides.count("val") / 3000 - 0.1) < 0.03


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_problem_is_a_pure_function_of_seed_and_number(family: Family) -> None:
    first = [family.problem(Dice(1, i), "train", unseen=False) for i in range(30)]
    again = [family.problem(Dice(1, i), "train", unseen=False) for i in reversed(range(30))]
    assert first == again[::-1]
    assert first != [family.problem(Dice(2, i), "train", unseen=False) for i in range(30)]


def test_operands_in_either_order_are_one_problem() -> None:
    problems = [Arithmetic().draw(Dice(5, i), unseen=False) for i in range(1500)]
    by_key: dict[str, set[str]] = {}
    for problem in problems:
        assert problem.call is not None
        by_key.setdefault(problem.key, set()).add(problem.call)
    both = [calls for calls in by_key.values() if len(calls) > 1]
    assert both, "small numbers recur"
    for calls in both:
        assert len({frozenset(re.findall(r"\d+", call)) for call in calls}) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_answers_are_right(family: Family) -> None:
    for i in range(100):
        problem = family.problem(Dice(7, i), "train", unseen=False)
        assert problem.family == family.name and problem.accepts(problem.answer)
        assert not problem.accepts("") and not problem.accepts(problem.answer + " 0")
        if problem.call is not None:
            assert evaluate(problem.call) == problem.answer


def test_arithmetic_against_the_question() -> None:
    """The answer by an independent reading of the question."""
    signs = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    read = 0
    for i in range(600):
        problem = Arithmetic().draw(Dice(9, i), unseen=False)
        if match := re.search(r"(\d+) ([-+*]) (\d+)", problem.question):
            a, sign, b = match.groups()
            assert problem.answer == str(signs[sign](int(a), int(b)))
            read += 1
    assert read > 50


def test_a_function_may_be_written_in_any_way() -> None:
    functions = next(family for family in FAMILIES if family.name == "expressions")
    problem = next(
        problem for i in range(500) if (problem := functions.draw(Dice(2, i), unseen=False)).answer.startswith("(x+")
    )
    assert problem.accepts(f"({problem.answer})+0") and not problem.accepts(f"({problem.answer})+1")
    assert not problem.accepts("__import__('os')")
    for i in range(40):
        problem = functions.draw(Dice(4, i), unseen=False)
        assert problem.key == "function|" + "|".join(evaluate(problem.answer, {"x": x}) for x in INPUTS)


def test_lists_of_facts_and_words() -> None:
    assert ("JSONDecodeError", "json") in modules() or dict(modules())["heappush"] == "heapq"
    assert dict(parameters())["textwrap.dedent"] == "text"
    assert len(words()) > 1000 and "statement" in words()


def test_the_answer_of_a_reply() -> None:
    for frame in (SHORT, *SENTENCES):
        assert answer_in(frame.format("357")) == "357"
    assert answer_in(" 357\n") == "357"
    for catch_all in ("1 2 3 357", "The answer is 1. The answer is 357.", "357 or 358", ""):
        assert answer_in(catch_all) != "357"
