"""The engine of continuous batching: every request gets the text that it would get alone."""

import random
from typing import Any

import pytest
import torch

from tests.inference.test_generator import BYTES, EOT, LETTERS
from tests.inference.test_rows import KINDS
from tests.support.kernels import decode_kernels_here
from tests.support.models import Scripted, tiny_model
from tests.support.options import Choice, built
from tinyllm.inference import batching
from tinyllm.inference.batching import Engine, Job, Piece, Request, TokenLogprob
from tinyllm.inference.generator import generate_batch
from tinyllm.inference.sampling import Sampling
from tinyllm.models.transformer import Transformer

GREEDY = Sampling(temperature=0)


def model_of(*overrides: str, max_seq_len: int = 40) -> Transformer:
    return tiny_model(*overrides, vocab_size=LETTERS.vocab_size, max_seq_len=max_seq_len).eval()


def engine_of(model: Any, tokenizer: Any = LETTERS, *, max_batch: int = 4) -> Engine:
    return Engine(model, tokenizer, max_batch=max_batch, max_len=model.max_seq_len)


def asked(prompt: str = "abc", **changes: Any) -> Request:
    ids = LETTERS.encode(prompt).tolist()
    defaults = {"ids": ids, "context": ids, "max_new_tokens": 6, "sampling": GREEDY, "seed": 1}
    return Request(**(defaults | changes))


def run(engine: Engine, requests: list[Request], *, seed: int = 0) -> list[list[Piece]]:
    """The pieces of each request; requests are handed in at random steps."""
    numbers = random.Random(seed)
    jobs: list[Job] = []
    pieces: dict[int, list[Piece]] = {}
    waiting = list(requests)
    while waiting or engine.has_work:
        while waiting and numbers.random() < 0.5:
            jobs.append(engine.submit(waiting.pop(0)))
        for piece in engine.step():
            pieces.setdefault(id(piece.job), []).append(piece)
    return [pieces[id(job)] for job in jobs]


def texts(pieces: list[Piece]) -> list[str]:
    samples = range(1 + max(piece.sample for piece in pieces))
    return ["".join(piece.text for piece in pieces if piece.sample == sample) for sample in samples]


def mixed_requests(count: int, *, seed: int) -> list[tuple[str, Request]]:
    numbers = random.Random(seed)
    found = []
    for number in range(count):
        prompt = "".join(numbers.choices("abcdefgh ", k=numbers.randint(1, 20)))
        settings = numbers.choice(
            [
                {"sampling": GREEDY},
                {"sampling": Sampling(temperature=8.0, top_p=0.9)},
                {"sampling": Sampling(temperature=5.0, repetition_penalty=1.5), "n_samples": 3},
                {"sampling": Sampling(temperature=6.0, top_k=9), "stop": ("d", "gh")},
            ]
        )
        changes = {"seed": number, "max_new_tokens": numbers.randint(1, 18)}
        found.append((prompt, asked(prompt, **changes, **settings)))
    return found


def test_the_text_of_a_request_is_that_of_generate_whoever_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled, with stop strings, penalties and several samples; short prompts read whole, others in pieces."""
    monkeypatch.setattr(batching, "PREFILL_TOKENS", 6)
    model = model_of("attn=gqa", "model.block.attn.window=7", "model.short_conv=2")
    mixed = mixed_requests(14, seed=3)
    found = run(engine_of(model), [request for _, request in mixed])
    for (prompt, request), pieces in zip(mixed, found, strict=True):
        alone = generate_batch(
            model,
            LETTERS,
            [prompt],
            n_samples=request.n_samples,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            seed=request.seed,
            stop=request.stop,
        )
        assert texts(pieces) == alone[0]
        finishes = [piece.finish for piece in pieces if piece.finish]
        assert len(finishes) == request.n_samples and (request.stop or set(finishes) == {"length"})


@pytest.mark.parametrize(
    "choice",
    [pytest.param(one, id=str(one), marks=() if not at % 12 else pytest.mark.slow) for at, one in enumerate(KINDS)],
)
def test_greedy_tokens_of_32_requests_are_those_of_each_alone(choice: Choice) -> None:
    """Against one forward pass over each whole sequence, for every attention × window × mixture."""
    model = built(choice, init_std=0.5).eval()
    numbers = random.Random(2)
    requests = []
    for _ in range(32):
        ids = [numbers.randrange(LETTERS.vocab_size) for _ in range(numbers.randint(1, 9))]
        requests.append(asked(ids=ids, context=(), max_new_tokens=numbers.randint(1, model.max_seq_len - len(ids))))
    for request, pieces in zip(requests, run(engine_of(model, max_batch=5), requests, seed=5), strict=True):
        new = [piece.token for piece in pieces]
        ids = torch.tensor([[*request.ids, *new]])
        with torch.no_grad():
            logits = model.logits(model(ids[:, :-1]))[0, len(request.ids) - 1 :, : LETTERS.vocab_size]
        assert logits.argmax(-1).tolist() == new and len(new) == request.max_new_tokens


@pytest.mark.slow
def test_with_our_kernels_so_are_those_of_12_for_every_attention_window_and_mixture() -> None:
    """And their log-probabilities too: to the bit, for the models whose steps are one call of C++."""
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("no compiler here")
    n_whole_steps = 0
    for choice in KINDS:
        model = built(choice, init_std=0.5).eval()
        model.for_inference(torch.float32, kernels=kernels)
        numbers = random.Random(4)
        requests = []
        for _ in range(12):
            ids = [numbers.randrange(LETTERS.vocab_size) for _ in range(numbers.randint(1, 9))]
            most = model.max_seq_len - len(ids)
            requests.append(asked(ids=ids, context=(), max_new_tokens=numbers.randint(1, most), logprobs=0))
        together = run(engine_of(model, max_batch=5), requests, seed=6)
        for request, pieces in zip(requests, together, strict=True):
            (alone,) = run(engine_of(model, max_batch=1), [request])
            for one, other in zip(pieces, alone, strict=True):
                assert isinstance(one.token, TokenLogprob) and isinstance(other.token, TokenLogprob)
                assert one.token.token == other.token.token
                assert model.decode_step is None or choice.window or one.token.logprob == other.token.logprob
        n_whole_steps += model.decode_step is not None
    assert n_whole_steps


def test_a_stop_string_over_several_tokens_is_left_out_and_frees_the_place() -> None:
    model = Scripted([*b"one, two", EOT], vocab_size=257)
    engine = engine_of(model, BYTES)
    (pieces,) = run(engine, [asked(ids=[1], context=(), stop=(", t",), max_new_tokens=20)])
    assert texts(pieces) == ["one"] and pieces[-1].finish == "stop"
    assert [piece.offset for piece in pieces] == list(range(6)) and not engine.has_work
    model = Scripted([*b"one", EOT], vocab_size=257)
    (pieces,) = run(engine_of(model, BYTES), [asked(ids=[1], context=(), stop=("e!",), max_new_tokens=20)])
    assert texts(pieces) == ["one"] and pieces[-1].finish == "stop" and pieces[-1].token == EOT


def test_log_probabilities_are_those_of_the_model() -> None:
    model = model_of("attn=mla")
    request = asked("abcde", logprobs=3, prompt_logprobs=True, sampling=Sampling(temperature=7.0), max_new_tokens=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "PREFILL_TOKENS", 2)
        ((pieces),) = run(engine_of(model), [request])
    entries = pieces[0].job.prompt_logprobs + [piece.token for piece in pieces]
    new = [piece.token.token for piece in pieces if isinstance(piece.token, TokenLogprob)]
    ids = [*request.ids, *new]
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([ids[:-1]])))[0].log_softmax(-1)
    assert entries[0] is None and len(entries) == len(ids) == 9
    for position, entry in enumerate(entries[1:]):
        assert isinstance(entry, TokenLogprob) and entry.token == ids[position + 1]
        assert entry.logprob == pytest.approx(float(expected[position, entry.token]), abs=1e-4)
        best, best_ids = expected[position].topk(3)
        assert [token for token, _ in entry.top] == best_ids.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.tolist(), abs=1e-4)


def test_a_prompt_alone_can_be_scored() -> None:
    (pieces,) = run(engine_of(model_of()), [asked("abc", logprobs=0, prompt_logprobs=True, max_new_tokens=0)])
    assert [(piece.text, piece.token, piece.finish) for piece in pieces] == [("", None, "length")]
    assert len(pieces[0].job.prompt_logprobs) == 3


@pytest.mark.parametrize("while_reading", [False, True])
def test_a_cancelled_request_frees_its_place_at_the_next_step(
    while_reading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PREFILL_TOKENS", 4)
    engine = engine_of(model_of(), max_batch=2)
    kept = engine.submit(asked("ab", max_new_tokens=30))
    dropped = engine.submit(asked("abcdefgh" * 2, max_new_tokens=20))
    queued = engine.submit(asked("h", max_new_tokens=2))
    unread = engine.submit(asked("g"))
    pieces = engine.step()
    while not while_reading and not any(piece.job is dropped for piece in pieces):
        pieces += engine.step()
    assert while_reading == (engine._reading is not None)
    dropped.cancel()
    unread.cancel()
    before = len(pieces)
    pieces += engine.step()
    assert not any(piece.job is dropped for piece in pieces[before:]) and any(p.job is queued for p in pieces[before:])
    while engine.has_work:
        pieces += engine.step()
    expected = generate_batch(engine.batch.model, LETTERS, ["ab", "h"], max_new_tokens=30, sampling=GREEDY)
    assert "".join(piece.text for piece in pieces if piece.job is kept) == expected[0][0]
    assert "".join(piece.text for piece in pieces if piece.job is queued) == expected[1][0][:2]
    assert not any(piece.job is unread for piece in pieces)


def test_others_go_on_while_a_long_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PREFILL_TOKENS", 4)
    engine = engine_of(model_of())
    first = engine.submit(asked("a", max_new_tokens=12))
    second = engine.submit(asked("abcdefgh" * 2, max_new_tokens=1))
    steps = [[piece.job for piece in engine.step()] for _ in range(6)]
    assert all(first in jobs for jobs in steps)
    assert [second in jobs for jobs in steps].index(True) == 3  # 16 tokens, 4 a step


def test_waiting_prompts_of_like_lengths_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PREFILL_TOKENS", 20)
    engine = engine_of(model_of("attn=gqa"), max_batch=8)
    prompts = ["abcd", "abc", "dcba", "abcdefgh", "ab", "hgfedc", "abcdef", "hhgfed"]
    requests = [asked(prompt, logprobs=0, prompt_logprobs=True, max_new_tokens=5) for prompt in prompts]
    jobs = [engine.submit(request) for request in requests]
    read: list[tuple[int, ...]] = []
    engine.batch.model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    pieces = []
    while engine.has_work:
        pieces += engine.step()
    assert [shape for shape in read if shape[1] > 1] == [(3, 4), (1, 8), (1, 2), (3, 6)]
    for prompt, request, job in zip(prompts, requests, jobs, strict=True):
        own = [piece for piece in pieces if piece.job is job]
        expected = generate_batch(engine.batch.model, LETTERS, [prompt], max_new_tokens=5, sampling=GREEDY)
        assert texts(own) == expected[0] and len(job.prompt_logprobs) == len(request.ids)
        alone = run(engine_of(engine.batch.model), [request])[0][0].job.prompt_logprobs
        for one, other in zip(job.prompt_logprobs[1:], alone[1:], strict=True):
            assert one is not None and other is not None and one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_what_can_never_be_served_is_refused_and_samples_wait_for_room_together() -> None:
    engine = engine_of(model_of(), max_batch=3)
    for changes in ({"n_samples": 4}, {"ids": []}, {"max_new_tokens": 38}, {"n_samples": 0}):
        with pytest.raises(ValueError, match=r"n_samples|tokens"):
            engine.submit(asked(**changes))
    first = engine.submit(asked(max_new_tokens=3))
    three = engine.submit(asked(n_samples=3, max_new_tokens=2))
    last = engine.submit(asked(max_new_tokens=1))
    order = []
    while engine.has_work:
        order += [piece.job for piece in engine.step()]
    assert [order.index(job) for job in (first, three, last)] == [0, 3, 9]


def test_a_failure_ends_those_under_way_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model_of())
    jobs = [engine.submit(asked(max_new_tokens=9, n_samples=2)), engine.submit(asked(max_new_tokens=9))]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.batch, "step", lambda ids: torch.zeros(99999999999999))
        pieces = engine.step()
    assert [piece.job for piece in pieces] == jobs and all(piece.finish is None for piece in pieces)
    assert all(isinstance(job.error, RuntimeError) for job in jobs) and not engine.has_work
    (pieces,) = run(engine, [asked("abc")])
    assert texts(pieces) == generate_batch(engine.batch.model, LETTERS, ["abc"], max_new_tokens=6, sampling=GREEDY)[0]
