"""Text out of tokens: streaming, stop strings, the end of a text, prompts, seeds."""

import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import Scripted, options, tiny_model
from tinyllm.errors import UserError
from tinyllm.inference.generator import Piece, echo, generate_text, prompt_ids, stream_text
from tinyllm.inference.sampling import Sampling
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer

BYTES = ByteTokenizer()
LETTERS = CharTokenizer("\n abcdefghijklmno")
EOT = BYTES.eot_id


def said(*texts: bytes, n: int = 64, stop: str | list[str] | None = None) -> list[list[str]]:
    """The pieces of each sample when the model says these bytes and then end-of-text."""
    model = Scripted(*([*text, EOT] for text in texts))
    pieces: list[list[str]] = [[] for _ in texts]
    for piece in stream_text(
        model, BYTES, "x", max_new_tokens=n, n_samples=len(texts), stop=stop, sampling=Sampling(temperature=0)
    ):
        pieces[piece.sample].append(piece.text)
    return pieces


@given(text=st.text(max_size=20))
def test_characters_of_many_bytes_come_whole_and_nothing_else_comes(text: str) -> None:
    (pieces,) = said(text.encode(), n=100)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert len(pieces) == len(text.encode()) + 1  # one piece per token, the end-of-text too


def test_a_character_that_the_last_token_leaves_unfinished_is_left_out() -> None:
    assert said("aé".encode(), n=2) == [["a", ""]]
    assert said("aé".encode(), n=3) == [["a", "", "é"]]


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    assert "".join(said(b"a\xffb")[0]) == "a\ufffdb"
    assert "".join(said(b"a\xc3")[0]) == "a\ufffd"  # the model itself ended there


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", "\n\n", "one"),
        ("one\ntwo", "\n\n", "one\ntwo"),
        ("ends with a\n", "\n\n", "ends with a\n"),
        ("naïve café", "é", "naïve caf"),
        ("one two three", ["three", "two"], "one "),
        ("stop at once", "stop", ""),
        ("never", None, "never"),
        ("never", [], "never"),
    ],
)
def test_stop_strings(text: str, stop: str | list[str] | None, expected: str) -> None:
    (pieces,) = said(text.encode(), stop=stop)
    assert "".join(pieces) == expected


def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    model = Scripted([*b"z", EOT])
    assert generate_text(model, BYTES, "x|y", max_new_tokens=9, stop="y", temperature=0) == "x|yz"


def test_each_sample_ends_by_itself() -> None:
    one, two, three = said(b"abc", b"a", b"abcdef", n=5, stop="e")
    assert ["".join(one), "".join(two), "".join(three)] == ["abc", "a", "abcd"]
    model = Scripted([*b"ab", EOT], [*b"abcd", EOT])
    pieces = list(stream_text(model, BYTES, "x", max_new_tokens=3, n_samples=2, sampling=Sampling(temperature=0)))
    assert [piece.sample for piece in pieces if piece.ended] == [0, 1]
    assert pieces[-1] == Piece(sample=1, text="c", ended=True)


def test_the_unknown_token_is_never_written() -> None:
    tokenizer = CharTokenizer("ab", unk=True)
    model = Scripted([tokenizer.unk_id], vocab_size=3)
    assert "\ufffd" not in generate_text(model, tokenizer, "a", max_new_tokens=20, seed=1)


def test_an_empty_prompt_starts_where_a_document_does() -> None:
    assert prompt_ids(BYTES, "") == [EOT]
    assert prompt_ids(CharTokenizer("\nab"), "") == [0]
    assert prompt_ids(CharTokenizer("\t\nab"), "") == [1]
    assert prompt_ids(CharTokenizer("ab"), "") == [0]


@pytest.mark.parametrize("tokenizer", [BYTES, CharTokenizer("ab")], ids=["byte", "char"])
def test_a_prompt_with_a_byte_that_is_not_utf8(tokenizer) -> None:
    """On a command line such a byte becomes half a surrogate pair."""
    with pytest.raises(UserError, match="not text") as caught:
        prompt_ids(tokenizer, "a" + os.fsdecode(b"\xff"), key="trainer.sample_prompt")
    assert caught.value.key == "trainer.sample_prompt"
    assert prompt_ids(IdsTokenizer(vocab_size=9), "") == [0]
    text = generate_text(Scripted([*b"hi", EOT]), BYTES, "", max_new_tokens=9, temperature=0)
    assert text == "hi"


def test_a_character_never_seen_is_named() -> None:
    with pytest.raises(UserError, match=re.escape("'é' (U+00E9)") + ".*prompt=née"):
        prompt_ids(LETTERS, "née")
    with pytest.raises(UserError, match=re.escape("trainer.sample_prompt=é")):
        prompt_ids(CharTokenizer("ab", unk=True), "é", key="trainer.sample_prompt")


def test_numbers_are_kept_apart() -> None:
    tokenizer = IdsTokenizer(vocab_size=9)
    assert echo(tokenizer, "1 2") == "1 2 "
    text = generate_text(Scripted([3, 4], vocab_size=9), tokenizer, "1 2", max_new_tokens=2, temperature=0)
    assert text.split() == ["1", "2", "3", "4"]
    assert echo(BYTES, "née ") == "née "


def test_the_space_before_a_word_survives_in_tokenizers_that_write_it_as_a_mark() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

    backend = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    text = generate_text(
        Scripted([1], vocab_size=3), HuggingFaceTokenizer(backend), "hello", max_new_tokens=2, temperature=0
    )
    assert text == "hello world world"


def test_a_seed_repeats_the_text_and_another_gives_another() -> None:
    model = tiny_model(vocab_size=LETTERS.vocab_size)
    texts = [generate_text(model, LETTERS, "abc", max_new_tokens=40, seed=seed, temperature=5.0) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("pos", options("pos"))
@pytest.mark.parametrize("prompt", ["", "a", "abcdefghijk", "abc def ghi jkl mno"])
def test_sampled_text_is_the_same_with_and_without_a_cache_and_whatever_n_samples(pos: str, prompt: str) -> None:
    model = tiny_model(f"pos={pos}", vocab_size=LETTERS.vocab_size, max_seq_len=12)

    def texts(n_samples: int, kv_cache: bool) -> list[str]:
        found = [""] * n_samples
        for piece in stream_text(
            model,
            LETTERS,
            prompt,
            max_new_tokens=40,
            n_samples=n_samples,
            kv_cache=kv_cache,
            sampling=Sampling(temperature=5.0),
        ):
            found[piece.sample] += piece.text
        return found

    three = texts(3, True)
    assert three == texts(3, False)
    assert three[:1] == texts(1, True)
    assert len(set(three)) == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_and_the_global_random_state_stay(training: bool) -> None:
    model = tiny_model("model.dropout=0.5", vocab_size=LETTERS.vocab_size).train(training)
    before = torch.get_rng_state()
    assert generate_text(model, LETTERS, "a", max_new_tokens=9) == generate_text(model, LETTERS, "a", max_new_tokens=9)
    assert model.training is training
    stream = stream_text(model, LETTERS, "a", max_new_tokens=9)
    next(stream)
    assert not model.training
    stream.close()
    assert all(module.training is training for module in model.modules())
    assert torch.get_rng_state().equal(before)
    assert torch.is_grad_enabled()


def test_the_caller_keeps_its_gradients_and_autocast() -> None:
    for _ in stream_text(tiny_model(vocab_size=LETTERS.vocab_size), LETTERS, "a", max_new_tokens=2):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("key", "value"), [("max_new_tokens", 0), ("n_samples", 0), ("stop", ["a", ""])])
def test_settings_out_of_range(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        list(stream_text(Scripted([1]), BYTES, "a", **({"max_new_tokens": 5} | {key: value})))  # type: ignore[arg-type]


def test_autocast_rounds_the_weights_once_per_stream_and_keeps_nothing() -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    def copies(n_tokens: int) -> int:
        with torch.profiler.profile() as profile:
            generate_text(model, LETTERS, "a", max_new_tokens=n_tokens, autocast=autocast, temperature=0)
        return sum(1 for event in profile.events() if event.name == "aten::copy_" and event.cpu_time_total)

    model = tiny_model(vocab_size=LETTERS.vocab_size)
    weights = sum(1 for kind in model.parameter_kinds().values() if kind != "vector")
    first, second, third = copies(1), copies(2), copies(3)
    assert third - second < first  # the weights are among the first token's copies only
    assert first - (third - second) >= weights
    with autocast():
        before = model(torch.tensor([[1]]))
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.mul_(3)
    with autocast():
        assert not model(torch.tensor([[1]])).equal(before)  # a kept copy would be stale
