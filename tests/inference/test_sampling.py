"""Sampling, compared with transformers' logits processors, brute force and closed forms."""

import math

import pytest
import torch

from tinyllm.errors import UserError
from tinyllm.inference.sampling import Sampling, TokenChooser, stream_seeds

V = 50


def random_logits(seed: int, rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.7, "top_k": 7},
        {"temperature": 1.0, "top_k": 500},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.7, "top_p": 0.05},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.3, "min_p": 1.0},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.4},
        {"temperature": 1.0, "repetition_penalty": 0.7},
    ],
)
def test_sampling_filters_equal_those_of_transformers(settings: dict[str, float]) -> None:
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    history = torch.randint(V, (6, 9), generator=torch.Generator().manual_seed(5))
    expected = logits = random_logits(1)
    # The order in which GenerationMixin._get_logits_processor puts them.
    if "repetition_penalty" in settings:
        expected = RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(history, expected)
    expected = TemperatureLogitsWarper(settings["temperature"])(history, expected)
    if "top_k" in settings:
        expected = TopKLogitsWarper(int(settings["top_k"]))(history, expected)
    if "top_p" in settings:
        expected = TopPLogitsWarper(settings["top_p"])(history, expected)
    if "min_p" in settings:
        expected = MinPLogitsWarper(settings["min_p"])(history, expected)

    sampling = Sampling(**settings)  # type: ignore[arg-type]
    seen = torch.zeros(6, V, dtype=torch.bool).scatter_(1, history, True)
    torch.testing.assert_close(sampling.filter(sampling.penalize(logits, seen)), expected)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_top_p(top_p: float) -> None:
    logits = random_logits(2)
    kept = Sampling(temperature=1.0, top_p=top_p).filter(logits).isfinite()
    for row, probabilities in enumerate(logits.double().softmax(-1).tolist()):
        total, expected = 0.0, set()
        for token in sorted(range(V), key=lambda t, p=probabilities: -p[t]):
            expected.add(token)
            total += probabilities[token]
            if total >= top_p:
                break
        assert set(kept[row].nonzero()[:, 0].tolist()) == expected


def test_every_filter_keeps_the_most_likely_token() -> None:
    logits = random_logits(3)
    for settings in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        filtered = Sampling(temperature=1.0, **settings).filter(logits)  # type: ignore[arg-type]
        assert filtered.isfinite().sum(-1).eq(1).all()
        assert filtered.argmax(-1).equal(logits.argmax(-1))


def test_penalty_lowers_probability_for_either_sign_of_the_logit() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    seen = torch.tensor([[True, True, True, False]])
    assert Sampling(repetition_penalty=2.0).penalize(logits, seen).tolist() == [[1.0, -4.0, 0.0, 1.0]]
    assert Sampling(repetition_penalty=1.0).penalize(logits, seen) is logits


def test_penalty_covers_the_prompt_and_chosen_tokens() -> None:
    chooser = TokenChooser(
        Sampling(temperature=0, repetition_penalty=10.0), seed=0, n_samples=1, vocab_size=4, device="cpu"
    )
    chooser.observe(torch.tensor([[3]]))
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert [int(chooser.choose(logits)) for _ in range(3)] == [2, 1, 0]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    n = 20_000
    chooser = TokenChooser(Sampling(temperature=1.0), seed=3, n_samples=n, vocab_size=4)
    drawn = chooser.choose(probabilities.log().expand(n, 4)).bincount(minlength=4)
    assert drawn[1] == 0
    for count, p in zip(drawn.tolist(), probabilities.tolist(), strict=True):
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_tokens_depend_on_the_seed_and_not_on_n_samples() -> None:
    def tokens(seed: int, n_samples: int) -> list[list[int]]:
        chooser = TokenChooser(Sampling(), seed=seed, n_samples=n_samples, vocab_size=V)
        return torch.stack([chooser.choose(random_logits(9, 1).expand(n_samples, V)) for _ in range(20)], 1).tolist()

    assert tokens(1, 5) == tokens(1, 5)
    assert tokens(1, 2) == tokens(1, 5)[:2]
    assert tokens(1, 1) != tokens(2, 1)
    rows = tokens(1, 5)
    assert len({tuple(row) for row in rows}) == 5
    assert stream_seeds(1, 3) == stream_seeds(1, 30)[:3]


def test_the_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    TokenChooser(Sampling(), seed=1, n_samples=3, vocab_size=V).choose(random_logits(1, 3))
    assert torch.get_rng_state().equal(before)


def test_ids_beyond_the_vocabulary_are_never_chosen() -> None:
    logits = torch.zeros(4, V)
    logits[:, 10:] = 100.0
    for temperature in (0.0, 1.0):
        chooser = TokenChooser(Sampling(temperature=temperature), seed=1, n_samples=4, vocab_size=10)
        assert all((chooser.choose(logits) < 10).all() for _ in range(5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(temperature: float) -> None:
    chooser = TokenChooser(Sampling(temperature=temperature), seed=1, n_samples=2, vocab_size=V)
    logits = random_logits(1, 2)
    logits[1, 3] = math.nan
    with pytest.raises(UserError, match="NaN"):
        chooser.choose(logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"temperature": 0, "top_k": 5},
        {"temperature": 0, "top_p": 0.5},
        {"temperature": 0, "min_p": 0.5},
    ],
)
def test_sampling_values_out_of_range_or_without_effect_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=list(settings)[-1]):
        Sampling(**settings)  # type: ignore[arg-type]
