"""The char tokenizer: alphabet, end-of-text, unknown characters."""

import numpy as np
import pytest

from tinyllm.errors import UserError
from tinyllm.tokenizers.char import CharTokenizer, CharTrainer, code_points, utf8_lengths


def test_ids_are_positions_in_the_sorted_alphabet() -> None:
    tokenizer = CharTrainer().train(["hello wörld"])
    assert tokenizer.alphabet == "".join(sorted(set("hello wörld")))
    assert tokenizer.encode("dö ").tolist() == [tokenizer.alphabet.index(c) for c in "dö "]


def test_single_document_has_no_id_beyond_its_alphabet() -> None:
    tokenizer = CharTrainer().train(["ab", "ba"], n_documents=1)
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.unk_id) == (2, None, None)


def test_several_documents_get_an_end_of_text() -> None:
    tokenizer = CharTrainer().train(["ab", "ba"])
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (3, 2)
    assert tokenizer.decode([0, 2, 1]) == "ab"


def test_covering_adds_only_unk_and_only_if_needed() -> None:
    tokenizer = CharTrainer().train(["abc"])
    assert tokenizer.covering(["cab"]) is tokenizer
    wider = tokenizer.covering(["cab", "xay€"])
    assert wider.alphabet == "abc"
    assert (wider.vocab_size, wider.unk_id) == (4, 3)
    assert wider.encode("xay").tolist() == [3, 0, 3]
    assert wider.decode([3, 0, 3]) == "\ufffda\ufffd"


def test_bytes_of_unknown_characters_are_counted() -> None:
    tokenizer = CharTokenizer("ab", unk=True)
    [(ids, lengths, _), (_, usual, _)] = tokenizer.encode_measured(["a€b😀é", "ab"])
    assert ids.tolist() == [0, 2, 1, 2, 2]
    assert lengths is not None and lengths.tolist() == [1, 3, 1, 4, 2]
    assert usual is None


@pytest.mark.parametrize("unk", [False, True])
def test_strict_encoding_names_the_unseen_character(unk: bool) -> None:
    tokenizer = CharTokenizer("ab", unk=unk)
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        tokenizer.encode("abé", strict=True)


def test_encoding_without_unk_refuses_unseen_characters() -> None:
    with pytest.raises(UserError, match="U\\+0078"):
        CharTokenizer("ab").encode("abx")
    with pytest.raises(UserError, match="U\\+0078"):
        CharTokenizer("ab").encode_batch(["abx"])


def test_alphabet_larger_than_16_bits() -> None:
    """Ids need more than 16 bits."""
    alphabet = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x1A000)]))
    tokenizer = CharTokenizer(alphabet, eot=True, unk=True)
    ids = tokenizer.encode(alphabet)
    assert ids.tolist() == list(range(len(alphabet)))
    assert len(alphabet) > 2**16


def test_utf8_lengths_equal_those_of_python() -> None:
    text = "".join(map(chr, [*range(0, 0x900), 0xFFFF, 0x10000, 0x10FFFF]))
    assert np.array_equal(utf8_lengths(code_points(text)), [len(c.encode()) for c in text])


@pytest.mark.parametrize("alphabet", ["ba", "aa"])
def test_alphabet_must_be_sorted_and_unique(alphabet: str) -> None:
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer(alphabet)


def test_tinyshakespeare_has_65_symbols(tinyshakespeare) -> None:
    text = tinyshakespeare.read_text()
    tokenizer = CharTrainer().train([text])
    assert tokenizer.vocab_size == 65
    numbers = {c: i for i, c in enumerate(sorted(set(text)))}  # as nanoGPT's prepare.py does it
    assert tokenizer.encode(text[:1000]).tolist() == [numbers[c] for c in text[:1000]]
