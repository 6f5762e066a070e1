"""What a token was chosen from, against a brute-force account of the filters and against plain generation."""

import math
from typing import Any

import pytest
import torch

from tests.inference.test_conversing import conversing, said
from tests.inference.test_generator import LETTERS
from tests.support.models import tiny_model
from tinyllm.data.chat.template import Roles
from tinyllm.inference.choices import GREEDY, UNKNOWN, ExplainingChooser
from tinyllm.inference.generator import stream_text
from tinyllm.inference.sampling import Sampling

V = 9


def reasons(logits: list[float], *, temperature: float, top_k: int, top_p: float, min_p: float) -> list[str]:
    """What excludes each token, filter by filter, in plain Python."""
    excluded = [""] * len(logits)

    def rest() -> list[int]:
        return sorted((i for i, reason in enumerate(excluded) if not reason), key=lambda i: -logits[i])

    def shares() -> dict[int, float]:
        weights = {i: math.exp(logits[i] / temperature) for i in rest()}
        return {i: weight / sum(weights.values()) for i, weight in weights.items()}

    for i in rest()[top_k:]:
        excluded[i] = "top_k"
    reached = 0.0
    for i, share in shares().items():
        if reached >= top_p:
            excluded[i] = "top_p"
        reached += share
    largest = max(shares().values())
    for i, share in shares().items():
        if share < min_p * largest:
            excluded[i] = "min_p"
    return excluded


@pytest.mark.parametrize("seed", range(5))
def test_each_excluded_token_has_its_filter(seed: int) -> None:
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(seed)) * 2
    settings: dict[str, Any] = {"temperature": 1.3, "top_k": 7, "top_p": 0.93, "min_p": 0.25}
    chooser = ExplainingChooser(Sampling(**settings), n_top=V, seed=seed, n_samples=2, vocab_size=V)
    ids = chooser.choose(logits).tolist()
    for row, choice in enumerate(chooser.choices):
        expected = reasons(logits[row].tolist(), **settings)
        assert {each.token: each.excluded_by for each in choice.top} == dict(enumerate(expected))
        assert set(expected) > {"", "top_k"}
        shares = [each.probability for each in choice.top]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
        torch.testing.assert_close(torch.tensor(shares), logits[row].softmax(-1).sort(descending=True).values)
        assert sum(each.drawn for each in choice.top) == pytest.approx(1)
        assert all((each.drawn == 0) == bool(each.excluded_by) for each in choice.top)
        assert choice.chosen.token == ids[row] and choice.chosen in choice.top and choice.chosen.drawn > 0


def test_penalty_greedy_and_unknown_tokens_are_told_apart() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 9.0]])
    chooser = ExplainingChooser(
        Sampling(temperature=0, repetition_penalty=2.0), n_top=4, seed=1, n_samples=1, vocab_size=4, unk_id=3
    )
    chooser.observe_prompts([[0]])
    assert chooser.choose(logits).tolist() == [1], "the penalty halves the logit of token 0"
    (choice,) = chooser.choices
    assert [(each.token, each.drawn, each.excluded_by) for each in choice.top] == [
        *((3, 0.0, UNKNOWN), (0, 0.0, GREEDY), (1, 1.0, ""), (2, 0.0, GREEDY)),
    ]
    assert choice.chosen.probability == pytest.approx(float(logits.softmax(-1)[0, 1])), "the model's own"


@pytest.mark.parametrize("kv_cache", [True, False])
def test_explained_text_has_the_tokens_of_the_plain_text(kv_cache: bool) -> None:
    model = tiny_model(max_seq_len=12, vocab_size=LETTERS.vocab_size)
    settings: dict[str, Any] = {"max_new_tokens": 15, "n_samples": 2, "stop": "d", "seed": 3, "kv_cache": kv_cache}
    settings["sampling"] = Sampling(temperature=5.0, top_k=9, repetition_penalty=1.2)
    plain = list(stream_text(model, LETTERS, ["abc", "a"], **settings))
    explained = list(stream_text(model, LETTERS, ["abc", "a"], explain=5, **settings))
    assert [piece._replace(choice=None) for piece in explained] == plain
    assert all(piece.choice is None for piece in plain)
    assert all(piece.choice is not None and len(piece.choice.top) == 5 for piece in explained)


def test_an_explained_answer_has_the_text_of_the_plain_one() -> None:
    plain, explained = (list(conversing(Roles(), seed=3, explain=n).answer("Hi")) for n in (0, 4))
    assert said(plain) == said(explained)
    assert all(not piece.choices for piece in plain)
    assert all(piece.choices for piece in explained if piece.kind == "text")
