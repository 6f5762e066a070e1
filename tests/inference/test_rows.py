"""Rows that join and leave while others are decoded get the tokens that they would get alone."""

import random
from itertools import product

import pytest
import torch

from tests.models.test_mixed_layers import mixed
from tests.support.kernels import decode_kernels_here
from tests.support.options import CONTEXT, VOCABULARY, WINDOWS, Choice, built, distinct, params, small
from tinyllm.inference.rows import RowBatch
from tinyllm.models.transformer import Transformer
from tinyllm.nn import inference_linear

POSITIONS = distinct("pos")
KINDS = [
    Choice(attn, POSITIONS[number % len(POSITIONS)], window, "glu", moe, "rmsnorm")
    for number, (attn, window, moe) in enumerate(product(distinct("attn"), WINDOWS, distinct("moe")))
]
"""Every attention × window × mixture; the positions take turns."""


Decoded = list[tuple[list[int], list[torch.Tensor]]]
"""Of each prompt: its tokens with those that follow, and the logits of these."""


def greedy_rows(model: Transformer, prompts: list[list[int]], *, seed: int) -> Decoded:
    """Decode each prompt greedily, in rows that join, in pieces of random lengths, and leave at random."""
    numbers = random.Random(seed)
    batch: RowBatch[int] = RowBatch(model, n_slots=3, max_len=CONTEXT)
    ids = [list(prompt) for prompt in prompts]
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    ends = [numbers.randint(len(prompt) + 2, CONTEXT) for prompt in prompts]
    waiting = list(range(len(prompts)))
    while waiting or len(batch):
        if waiting and len(batch) < batch.n_slots and (not len(batch) or numbers.random() < 0.6):
            row = batch.join(request := waiting.pop(0))
            for piece in torch.tensor(ids[request]).split(numbers.randint(1, 7)):
                hidden = batch.read(row, piece.tolist())
            logits[request].append(batch.logits(hidden[-1]))
            ids[request].append(int(logits[request][-1].argmax()))
        for request, row_logits in zip(
            list(batch.members), batch.step([ids[request][-1] for request in batch.members]), strict=True
        ):
            logits[request].append(row_logits)
            ids[request].append(int(row_logits.argmax()))
        for row in reversed(range(len(batch))):
            if batch.length(row) == ends[batch.members[row]]:
                batch.leave(row)
    return list(zip(ids, logits, strict=True))


def assert_as_alone(model: Transformer, *, seed: int) -> None:
    """Against one forward pass over each whole sequence, without a cache."""
    numbers = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCABULARY, (n,), generator=numbers).tolist() for n in (8, 1, 5, 2, 9)]
    for prompt, (ids, logits) in zip(prompts, greedy_rows(model, prompts, seed=seed), strict=True):
        with torch.no_grad():
            alone = model.logits(model(torch.tensor([ids[:-1]])))[0, len(prompt) - 1 :]
        assert ids[len(prompt) :] == alone.argmax(-1).tolist()
        torch.testing.assert_close(torch.stack(logits), alone, rtol=1e-5, atol=float(1e-5 * alone.abs().max()))


@pytest.mark.parametrize("choice", params(KINDS, KINDS))
def test_rows_that_join_and_leave_have_the_tokens_of_each_alone(choice: Choice) -> None:
    assert_as_alone(built(choice, init_std=0.5).eval(), seed=len(choice.pos))


def test_so_do_those_of_a_model_of_different_layers_with_short_convolutions() -> None:
    assert_as_alone(mixed(short_conv=3).eval(), seed=1)


@pytest.mark.parametrize(
    "settings", [("attn=gqa", "moe=aux_free"), ("attn=mla", "model.block.attn.window=5", "model.block.attn.sinks=2")]
)
def test_with_our_kernels_the_bits_of_a_row_do_not_depend_on_the_others(settings: tuple[str, ...]) -> None:
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("no compiler here")
    model = small(*settings, "model.short_conv=3", init_std=0.5).eval()
    model.for_inference(torch.float32, kernels=kernels)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]

    def forced(chosen: list[int]) -> list[torch.Tensor]:
        batch: RowBatch[int] = RowBatch(model, n_slots=3, max_len=CONTEXT)
        for member in chosen:
            batch.read(batch.join(member), prompts[member])
        return list(torch.stack([batch.step([3 + step] * len(chosen)) for step in range(5)], 1))

    together = forced([0, 1, 2])
    for member in range(3):
        assert forced([member])[0].equal(together[member])


@pytest.mark.parametrize("settings", [("attn=gqa",), ("attn=mla", "moe=aux_free"), ("pos=learned", "ffn=glu")])
def test_prompts_read_in_one_pass_go_on_as_if_read_alone(settings: tuple[str, ...]) -> None:
    model = small(*settings, init_std=0.5).eval()
    batch: RowBatch[int] = RowBatch(model, n_slots=4, max_len=CONTEXT)
    batch.read(batch.join(0), [1, 2])
    prompts = [[3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18]]
    assert batch.can_read_together(4, 7)
    for row in (1, 2, 3):
        batch.join(row)
    together = batch.read_together(1, prompts)
    assert [batch.length(row) for row in range(4)] == [2, 4, 7, 5]
    stepped = torch.stack([batch.step([ids, ids + 1, ids, ids]) for ids in (19, 21)], 1)
    for row, prompt in enumerate(prompts, start=1):
        ids = [19 + (row == 1), 21 + (row == 1)]
        with torch.no_grad():
            expected = model(torch.tensor([prompt + ids]))[0]
        torch.testing.assert_close(together[row - 1], expected[: len(prompt)], rtol=1e-5, atol=1e-5)
        logits = batch.logits(expected[len(prompt) :])
        torch.testing.assert_close(stepped[row], logits, rtol=1e-5, atol=float(1e-5 * logits.abs().max()))


def test_prompts_are_not_read_in_one_pass_where_filling_would_be_remembered() -> None:
    for settings, most in ((("model.block.attn.window=3",), 3), (("model.short_conv=2",), 0)):
        batch: RowBatch[int] = RowBatch(small(*settings).eval(), n_slots=2, max_len=CONTEXT)
        assert [batch.can_read_together(1, length) for length in (most, most + 1)] == [most > 0, False]


@pytest.mark.parametrize(
    ("settings", "int8"), [(("attn=gqa",), False), (("attn=gqa",), True), (("moe=aux_free",), True)]
)
def test_with_our_kernels_prompts_read_in_one_pass_have_the_bits_of_each_alone(
    settings: tuple[str, ...], int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(inference_linear, "MOST_INT8_ROWS", 5)
    model = small("attn=gqa", init_std=0.5).eval()
    model.for_inference(torch.float32, int8=int8, kernels=kernels)
    batch: RowBatch[int] = RowBatch(model, n_slots=3, max_len=CONTEXT)
    # Rounded to int8, a prompt of at most 5 tokens alone has the bits of our kernels, longer ones those of torch.
    assert [batch.can_read_together(shortest, 9) for shortest in (5, 6)] == [not int8, True]
    if int8:
        return
    prompts = [[3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18]]
    for row in range(3):
        batch.join(row)
    together = batch.read_together(0, prompts)
    stepped = batch.step([1, 1, 1])
    for prompt, hidden, logits in zip(prompts, together, stepped, strict=True):
        alone: RowBatch[int] = RowBatch(model, n_slots=1, max_len=CONTEXT)
        assert alone.read(alone.join(0), prompt).equal(hidden) and alone.step([1])[0].equal(logits)


def test_a_session_in_cpp_has_the_bits_and_the_errors_of_the_models_own_call() -> None:
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("no compiler here")
    model = small("attn=gqa", "model.block.attn.window=5", "model.block.attn.sinks=1", init_std=0.5).eval()
    model.for_inference(torch.float32, kernels=kernels)

    def logits_of(batch: RowBatch[int]) -> list[torch.Tensor]:
        """Rows join and leave."""
        found = []
        for member in range(3):
            batch.read(batch.join(member), [1, 2 + member])
            found += [batch.step([3 + step] * len(batch)) for step in range(3)]
        batch.leave(0)
        return [*found, batch.step([5, 6])]

    batches: list[RowBatch[int]] = [RowBatch(model, n_slots=3, max_len=CONTEXT) for _ in range(2)]
    assert batches[0].session is not None
    batches[1].session = None
    for one, other in zip(*map(logits_of, batches), strict=True):
        assert one.equal(other)
    batch = batches[0]
    with pytest.raises(IndexError, match=f"token {VOCABULARY} is not in"):
        batch.step([0, VOCABULARY])
    before = [batch.length(0), batch.length(1)]
    while batch.length(1) < CONTEXT:
        batch.step([1, 1])
    assert batch.length(0) - before[0] == CONTEXT - before[1] > 0
    with pytest.raises(ValueError, match="exceed the context"):
        batch.step([1, 1])


def test_a_copied_row_goes_on_as_its_source_and_slots_are_limited() -> None:
    model = small("attn=gqa", "model.block.attn.window=3", "model.short_conv=2").eval()
    batch: RowBatch[str] = RowBatch(model, n_slots=3, max_len=CONTEXT)
    batch.read(batch.join("first"), [5, 6, 7, 8, 9])
    batch.read(batch.join("other"), [1])
    batch.join("copy", copy_of=0)
    with pytest.raises(ValueError, match="all 3 slots"):
        batch.join("fourth")
    logits = batch.step([4, 4, 4])
    torch.testing.assert_close(logits[2], logits[0])
    batch.leave(0)
    assert batch.members == ["copy", "other"] and [batch.length(0), batch.length(1)] == [6, 2]
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([[5, 6, 7, 8, 9, 4, 2]])))[0, -1]
    torch.testing.assert_close(batch.step([2])[0], expected, rtol=1e-5, atol=1e-5)
    assert [batch.length(0), batch.length(1)] == [7, 2]
