"""Text generation: streaming, stop strings, end tokens, prompts, seeds."""

import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import Scripted, options, tiny_model
from tinyllm.errors import UserError
from tinyllm.inference.generator import GeneratedPiece, generate_text, printed_prompt, prompt_ids, stream_text
from tinyllm.inference.sampling import Sampling
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer

BYTES = ByteTokenizer()
LETTERS = CharTokenizer("\n abcdefghijklmno")
EOT = BYTES.eot_id


def said(*texts: bytes, n: int = 64, stop: str | list[str] | None = None) -> list[list[str]]:
    """The pieces of each sample when the model generates these bytes and then the end-of-text."""
    model = Scripted(*([*text, EOT] for text in texts))
    pieces: list[list[str]] = [[] for _ in texts]
    for piece in stream_text(
        model, BYTES, "x", max_new_tokens=n, n_samples=len(texts), stop=stop, sampling=Sampling(temperature=0)
    ):
        pieces[piece.sample].append(piece.text)
    return pieces


@given(text=st.text(max_size=20))
def test_multibyte_characters_are_streamed_whole(text: str) -> None:
    (pieces,) = said(text.encode(), n=100)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert len(pieces) == len(text.encode()) + 1  # one piece per token, the end-of-text too


def test_incomplete_last_character_is_left_out() -> None:
    assert said("aé".encode(), n=2) == [["a", ""]]
    assert said("aé".encode(), n=3) == [["a", "", "é"]]


def test_invalid_utf8_is_shown_as_replacement_characters() -> None:
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
def test_stop_strings_end_the_text(text: str, stop: str | list[str] | None, expected: str) -> None:
    (pieces,) = said(text.encode(), stop=stop)
    assert "".join(pieces) == expected


def test_stop_string_in_the_prompt_is_ignored() -> None:
    model = Scripted([*b"z", EOT])
    assert generate_text(model, BYTES, "x|y", max_new_tokens=9, stop="y", temperature=0) == "x|yz"


def test_each_sample_ends_independently() -> None:
    one, two, three = said(b"abc", b"a", b"abcdef", n=5, stop="e")
    assert ["".join(one), "".join(two), "".join(three)] == ["abc", "a", "abcd"]
    model = Scripted([*b"ab", EOT], [*b"abcd", EOT])
    pieces = list(stream_text(model, BYTES, "x", max_new_tokens=3, n_samples=2, sampling=Sampling(temperature=0)))
    assert [piece.sample for piece in pieces if piece.ended] == [0, 1]
    assert pieces[-1] == GeneratedPiece(sample=1, text="c", ended=True)


def test_unknown_token_is_never_generated() -> None:
    tokenizer = CharTokenizer("ab", unk=True)
    model = Scripted([tokenizer.unk_id], vocab_size=3)
    assert "\ufffd" not in generate_text(model, tokenizer, "a", max_new_tokens=20, seed=1)


def test_empty_prompt_starts_like_a_document() -> None:
    assert prompt_ids(BYTES, "") == [EOT]
    assert prompt_ids(CharTokenizer("\nab"), "") == [0]
    assert prompt_ids(CharTokenizer("\t\nab"), "") == [1]
    assert prompt_ids(CharTokenizer("ab"), "") == [0]


@pytest.mark.parametrize("tokenizer", [BYTES, CharTokenizer("ab")], ids=["byte", "char"])
def test_prompt_with_invalid_utf8_is_refused(tokenizer) -> None:
    """On a command line, Python turns such a byte into half a surrogate pair."""
    with pytest.raises(UserError, match="not valid UTF-8") as caught:
        prompt_ids(tokenizer, "a" + os.fsdecode(b"\xff"), key="trainer.sample_prompt")
    assert caught.value.key == "trainer.sample_prompt"
    assert prompt_ids(IdsTokenizer(vocab_size=9), "") == [0]
    text = generate_text(Scripted([*b"hi", EOT]), BYTES, "", max_new_tokens=9, temperature=0)
    assert text == "hi"


def test_unseen_character_in_a_prompt_is_named() -> None:
    with pytest.raises(UserError, match=re.escape("'é' (U+00E9)") + ".*prompt=née"):
        prompt_ids(LETTERS, "née")
    with pytest.raises(UserError, match=re.escape("trainer.sample_prompt=é")):
        prompt_ids(CharTokenizer("ab", unk=True), "é", key="trainer.sample_prompt")


def test_token_numbers_are_separated_by_spaces() -> None:
    tokenizer = IdsTokenizer(vocab_size=9)
    assert printed_prompt(tokenizer, "1 2") == "1 2 "
    text = generate_text(Scripted([3, 4], vocab_size=9), tokenizer, "1 2", max_new_tokens=2, temperature=0)
    assert text.split() == ["1", "2", "3", "4"]
    assert printed_prompt(BYTES, "née ") == "née "


def test_space_before_the_first_word_survives_metaspace_tokenizers() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

    backend = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    text = generate_text(
        Scripted([1], vocab_size=3), HuggingFaceTokenizer(backend), "hello", max_new_tokens=2, temperature=0
    )
    assert text == "hello world world"


def test_the_text_depends_on_the_seed_alone() -> None:
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
def test_model_mode_and_global_random_state_are_restored(training: bool) -> None:
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


def test_caller_keeps_its_gradient_and_autocast_modes() -> None:
    for _ in stream_text(tiny_model(vocab_size=LETTERS.vocab_size), LETTERS, "a", max_new_tokens=2):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("key", "value"), [("max_new_tokens", 0), ("n_samples", 0), ("stop", ["a", ""])])
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        list(stream_text(Scripted([1]), BYTES, "a", **({"max_new_tokens": 5} | {key: value})))  # type: ignore[arg-type]


def test_autocast_casts_weights_once_per_stream_and_keeps_nothing() -> None:
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
