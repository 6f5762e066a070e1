"""A session gives the same texts as the functions that take all settings in every call."""

import pytest
import torch

from tests.inference.test_generator import LETTERS
from tests.support.models import tiny_model
from tinyllm.errors import UserError
from tinyllm.inference.generator import generate_text, printed_prompt
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.session import Session

PROMPTS = ["abc", "", "a", "abc def ghi"]


def session(**settings: object) -> Session:
    model = tiny_model(max_seq_len=12, vocab_size=LETTERS.vocab_size)
    shared = {"max_new_tokens": 15, "sampling": Sampling(temperature=5.0)}
    return Session(model=model, tokenizer=LETTERS, **(shared | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_cache", [True, False])
def test_stream_gives_the_text_of_generate_text(kv_cache: bool) -> None:
    some = session(kv_cache=kv_cache)
    streamed = printed_prompt(LETTERS, "abc") + "".join(piece.text for piece in some.stream("abc", seed=3))
    settings = {"max_new_tokens": 15, "temperature": 5.0, "seed": 3}
    assert streamed == generate_text(some.model, LETTERS, "abc", kv_cache=kv_cache, **settings)  # type: ignore[arg-type]
    assert streamed != generate_text(some.model, LETTERS, "abc", **settings | {"seed": 4})  # type: ignore[arg-type]


def test_a_batch_gives_the_texts_of_each_prompt_alone() -> None:
    some = session(n_samples=3, stop="d")
    together = some.texts(PROMPTS, seed=1)
    assert together == [some.texts([prompt], seed=1)[0] for prompt in PROMPTS]
    streamed = [[""] * 3 for _ in PROMPTS]
    for piece in some.stream(PROMPTS, seed=1):
        streamed[piece.prompt][piece.sample] += piece.text
    assert streamed == together


def test_prompt_ids_follow_the_session_and_refusals_name_the_key() -> None:
    assert session().prompt_ids("ab") == LETTERS.encode("ab").tolist()
    with pytest.raises(UserError, match="bos=true"):
        session(bos=True).prompt_ids("ab")
    with pytest.raises(UserError, match="prompts=é"):
        session().prompt_ids("é", key="prompts")


def test_running_out_of_memory_says_what_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    some = session()

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(type(some.model), "logits", fail)
    with pytest.raises(UserError, match=r"not enough memory .generation.*fewer samples"):
        list(some.stream("a", seed=1))


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    session().texts(PROMPTS, seed=1)
    assert capsys.readouterr() == ("", "")
