"""Rollouts: every row as it would be alone, results forced in, limits, and the draws of a row's own seed."""

import numpy as np
import pytest
import torch

from tests.support.kernels import decode_kernels_here
from tests.support.models import tiny_model
from tinyllm.errors import UserError
from tinyllm.inference.rollout import Answer, Handover, rollout
from tinyllm.models.transformer import Transformer
from tinyllm.utils.seeds import derive_seed
from tinyllm.utils.stop_signal import Interrupted

VOCAB, CONTEXT, TEMPERATURE = 17, 40, 6.0
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 2], [5, 4, 3], [12]]
SEEDS = [[derive_seed(1, "rollout", prompt, sample) for sample in range(3)] for prompt in range(len(PROMPTS))]
STOPS = {1, 2}


def result_of(ids: list[int], calls: int) -> Handover:
    """The tool of these tests: token 2 calls it, at most twice, and it answers with the length of the turn, twice."""
    if ids[-1] == 1:
        return Handover()
    return (
        Handover(forced=[len(ids) % VOCAB] * 2, calls=1, errors=int(len(ids) == 1))
        if calls < 2
        else Handover(ended=False)
    )


def model_of(*overrides: str) -> Transformer:
    return tiny_model(*overrides, vocab_size=VOCAB, max_seq_len=CONTEXT).eval()


def answers(
    model: Transformer, prompts: list[list[int]] = PROMPTS, seeds: list[list[int]] = SEEDS, **changed: object
) -> list[Answer]:
    settings = {
        "max_new_tokens": 14,
        "max_forced_tokens": 6,
        "stop_ids": STOPS,
        "on_stop": result_of,
        "vocab_size": VOCAB,
        "temperature": TEMPERATURE,
    }
    return rollout(model, prompts, seeds=seeds, **settings | changed)  # type: ignore[arg-type]


def shown(answer: Answer) -> tuple[object, ...]:
    counts = (answer.ended, answer.calls, answer.errors)
    return (answer.ids.tolist(), answer.generated.tolist(), *counts)


KINDS = {
    "torch": (),
    "whole steps": ("attn=gqa", "model.block.attn.qk_norm=true", "ffn=glu", "model.bias=true"),
    "learned positions": ("pos=learned", "norm=layernorm", "model.tie_embeddings=false"),
    "a window": ("model.block.attn.window=4", "model.block.attn.sinks=1"),
    "parts without a step": ("attn=mla", "model.block.attn.window=4", "model.short_conv=3"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_as_if_alone(kind: str) -> None:
    model, kernels = model_of(*KINDS[kind]), None if kind == "torch" else decode_kernels_here()
    together = answers(model, kernels=kernels)
    assert [(answer.prompt, answer.sample) for answer in together] == [(p, s) for p in range(5) for s in range(3)]
    for answer in together[:: 2 if kind == "whole steps" else 4]:
        (alone,) = answers(model, [PROMPTS[answer.prompt]], [[SEEDS[answer.prompt][answer.sample]]], kernels=kernels)
        assert shown(alone) == shown(answer)
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, atol=1e-5)
    assert any(answer.calls for answer in together) and any(answer.ended for answer in together)
    assert any(not answer.ended for answer in together)


@pytest.mark.parametrize("kind", KINDS)
def test_against_reading_everything_again(kind: str) -> None:
    """The tokens and log-probabilities of a loop without cache or batch."""
    model, kernels = model_of(*KINDS[kind]), None if kind == "torch" else decode_kernels_here()
    for answer in answers(model, kernels=kernels)[:4]:
        prompt = PROMPTS[answer.prompt]
        ids = torch.tensor([prompt + answer.ids.tolist()])
        logprobs = (model.logits(model(ids)) / TEMPERATURE).log_softmax(-1)[0]
        at = len(prompt) - 1 + np.arange(len(answer.ids))
        expected = logprobs[at, answer.ids].detach().numpy()
        np.testing.assert_allclose(answer.logprobs, np.where(answer.generated, expected, 0), atol=1e-5)
        assert answer.tokens == answer.generated.sum() <= 14


def test_autocast_rounds_as_in_training() -> None:
    """bf16 log-probabilities with kernels are those of autocast, up to rounding."""
    model = model_of("attn=gqa")
    found = answers(model, kernels=decode_kernels_here(), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    for answer in found:
        prompt = PROMPTS[answer.prompt]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(torch.tensor([prompt + answer.ids.tolist()])))
        logprobs = (logits.float() / TEMPERATURE).log_softmax(-1)[0]
        expected = logprobs[len(prompt) - 1 + np.arange(len(answer.ids)), answer.ids].numpy()
        np.testing.assert_allclose(answer.logprobs, np.where(answer.generated, expected, 0), atol=0.1)


def test_a_model_is_as_before_and_its_new_weights_are_used() -> None:
    kernels = decode_kernels_here()
    model = model_of("attn=gqa")
    before = {name: (value.data_ptr(), value.stride()) for name, value in model.state_dict().items()}
    parts = [type(part) for part in model.modules()]
    first = answers(model, kernels=kernels)
    assert {name: (value.data_ptr(), value.stride()) for name, value in model.state_dict().items()} == before
    assert [type(part) for part in model.modules()] == parts and model.decode_step is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    changed, plain = answers(model, kernels=kernels), answers(model)
    assert [shown(answer) for answer in changed] == [shown(answer) for answer in plain]
    assert [shown(answer) for answer in changed] != [shown(answer) for answer in first]


def test_results_are_forced_in_and_not_counted() -> None:
    with_calls = [answer for answer in answers(model_of()) if answer.calls]
    assert with_calls
    for answer in with_calls:
        turn = 0
        for at in range(len(answer.ids)):
            if answer.generated[at]:
                turn += 1
            elif answer.generated[at - 1]:
                assert answer.ids[at - 1] == 2, "a result follows its call"
                assert answer.ids[at : at + 2].tolist() == [turn % VOCAB] * 2
                turn = 0
        assert (~answer.generated).sum() == 2 * answer.calls or not answer.ended
        assert answer.generated[-len(answer.last_turn()) :].all()


def test_a_greedy_answer_takes_the_most_likely_tokens() -> None:
    model = model_of()
    (answer,) = answers(model, [[3, 4, 5]], [[0]], temperature=0.0, stop_ids=())
    ids = [3, 4, 5]
    for token in answer.ids.tolist():
        assert token == int(model.logits(model(torch.tensor([ids]))[:, -1]).argmax())
        ids.append(token)
    assert len(answer.ids) == 14 and not answer.ended


def test_draws_follow_the_distribution() -> None:
    """The first token of many samples has the model's own frequencies, at the temperature."""
    model, count = model_of(), 4000
    seeds = [[derive_seed(9, "many", n) for n in range(count)]]
    first = [int(answer.ids[0]) for answer in answers(model, [[3, 4]], seeds, max_new_tokens=1, temperature=2.0)]
    logits = model.logits(model(torch.tensor([[3, 4]]))[:, -1]).detach()[0]
    expected = (logits / 2.0).softmax(-1).numpy() * count
    seen = np.bincount(first, minlength=VOCAB)
    chi_squared = ((seen - expected) ** 2 / expected).sum()
    assert chi_squared < 45, "with 16 degrees of freedom, beyond the 99.98th percentile"


def test_limits() -> None:
    model = model_of()
    cut = answers(model, max_new_tokens=3)
    assert max(answer.tokens for answer in cut) == 3
    assert all(answer.tokens == 3 for answer in cut if not answer.ended and not answer.calls)
    no_room = answers(model, max_forced_tokens=1)
    assert all(answer.generated.all() for answer in no_room)
    assert all(not answer.ended for answer in no_room if answer.calls)
    excluded = answers(model, excluded_ids=[1, 5], stop_ids=())
    assert not {1, 5} & {int(token) for answer in excluded for token in answer.ids[answer.generated]}


def test_errors() -> None:
    model = model_of()
    with pytest.raises(UserError, match=r"context is too short .* at most 34 new tokens"):
        answers(model, max_new_tokens=35)
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not a number"):
        answers(model)
    with pytest.raises(Interrupted):
        answers(model_of(), stopping=lambda: True)
