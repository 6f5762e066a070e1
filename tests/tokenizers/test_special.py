"""Special tokens spelled out in text: text by default, or matched, so that models can be trained on them."""

import itertools
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library

from tests.tokenizers.kinds import WORDS, built
from tinyllm.data.corpus import Document
from tinyllm.data.encode import encode_documents
from tinyllm.errors import UserError
from tinyllm.interop.tokenizer import read, special_ids, tokenizer_files
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer, load
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTrainer
from tinyllm.tokenizers.pretrained import PretrainedTrainer, loads
from tinyllm.tokenizers.special_tokens import STANDARD, SpecialTokenMatcher

MARKS = ["<|endoftext|>", "<user>", "<user>s", "## End", "ab ab"]
TEXT = WORDS + "".join(MARKS) + " ".join("".join(MARKS))  # each character also by itself


def trainers(match: bool, folder: Path) -> dict[str, TokenizerTrainer]:
    backend = library.Tokenizer.from_str(built("gpt2"))
    backend.add_special_tokens(MARKS)
    backend.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"special_tokens": MARKS, "match_special": match}
    return {
        "char": CharTrainer(**settings),
        "byte": ByteTrainer(**settings),
        "bpe": BPETrainer(vocab_size=300, min_frequency=2, **settings),
        "pretrained": PretrainedTrainer(path=str(folder), match_special=match),
    }


@pytest.fixture(params=["char", "byte", "bpe", "pretrained"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> list[Tokenizer]:
    """The same tokenizer with special tokens as text and with special tokens matched."""
    return [trainers(match, tmp_path)[request.param].train([TEXT], n_documents=2) for match in (False, True)]


def texts() -> list[str]:
    numbers = random.Random(3)
    bits = [*MARKS, "<", "user", ">", "s", "ab", " ", "ab a", "## ", "End", "the cat. ", "<|endof"]
    return ["".join(numbers.choices(bits, k=numbers.randrange(12))) for _ in range(60)]


def test_special_tokens_are_text_by_default(both: list[Tokenizer]) -> None:
    plain, _ = both
    special = set(plain.special.values())
    for text in texts():
        ids = plain.encode(text).tolist()
        assert not special & set(ids)
        assert plain.decode(ids) == text


def test_matched_special_tokens_get_their_ids(both: list[Tokenizer]) -> None:
    _, matched = both
    assert set(MARKS) <= matched.special.keys()
    for mark in MARKS:
        assert matched.encode(mark, strict=True).tolist() == [matched.special[mark]]
        assert matched.decode([matched.special[mark]]) == ""
    assert matched.eot_id == matched.special["<|endoftext|>"]
    for text in texts():
        expected = []
        for part, i in SpecialTokenMatcher(matched.special).split(text):
            expected += [i] if i is not None else both[0].encode(part).tolist()
        if matched.kind != "huggingface":  # whose vocabulary differs
            assert matched.encode(text).tolist() == expected
        ids = matched.encode(text).tolist()
        assert matched.encode_batch([text])[0].tolist() == ids
        assert matched.decode(ids) == "".join(
            part for part, i in SpecialTokenMatcher(matched.special).split(text) if i is None
        )


def test_pieces_and_byte_counts_of_text_with_special_tokens(both: list[Tokenizer]) -> None:
    """No special token is cut, and the bytes of its spelling are counted."""
    _, matched = both
    usual = matched.token_bytes()
    for text, size in itertools.product(texts(), (1, 3, 10)):
        chunks = [text[i : i + 2] for i in range(0, len(text), 2)]
        pieces = list(matched.pieces(chunks, size))
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in matched.encode(piece)] == matched.encode(text).tolist()
        document = Document(digest=b"", text_digest=b"", size=1, chunks=lambda text=text: iter([text]))  # type: ignore[misc]
        for ids, lengths, _ in encode_documents(matched, [document], piece=size):
            assert int((usual[ids] if lengths is None else lengths).sum()) == len(text)


def test_match_special_survives_saving_and_changes_the_fingerprint(both: list[Tokenizer], tmp_path: Path) -> None:
    plain, matched = both
    assert plain.fingerprint() != matched.fingerprint()
    for one in both:
        one.save(tmp_path / "saved.json")
        again = load(tmp_path / "saved.json")
        assert again.match_special is one.match_special
        assert again.fingerprint() == one.fingerprint()
        assert again.encode("<user>x").tolist() == one.encode("<user>x").tolist()
    assert matched.matching(False).match_special is False
    assert matched.matching(False).matching(True).fingerprint() == matched.fingerprint()


def test_exported_tokenizer_gives_transformers_the_same_ids(both: list[Tokenizer], tmp_path: Path) -> None:
    """Both the library and transformers match special tokens in text."""
    _, matched = both
    for name, text in tokenizer_files(matched, special=special_ids(matched), max_length=64).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    backend = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts():
        assert backend.encode(text, add_special_tokens=False).ids == matched.encode(text).tolist()
    again = read(tmp_path, vocab_size=matched.vocab_size, tell=pytest.fail)
    assert again.matching(True).fingerprint() == matched.fingerprint()


def test_match_special_is_part_of_the_cache_key(tmp_path: Path) -> None:
    for kind in ("char", "byte", "bpe", "pretrained"):
        assert trainers(True, tmp_path)[kind].fingerprint() != trainers(False, tmp_path)[kind].fingerprint()
    assert CharTrainer().settings() == ByteTrainer().settings() == {}  # as earlier versions had it
    old = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["x"], max_word=None)
    assert old.settings() == {"vocab_size": 300, "min_frequency": 2, "special_tokens": ["x"]}


def test_nothing_is_learned_from_matched_special_tokens() -> None:
    tokenizer = CharTrainer(special_tokens=["<Q>", "<unk>"], match_special=True).train(["a<Q>b", "<unk>"])
    assert tokenizer.alphabet == "<>abknu"
    bpe = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["<user>"], match_special=True)
    vocabulary = bpe.train(["<user>" * 50]).to_dict()["tokenizer"]["model"]["vocab"]
    assert [token for token in vocabulary if len(token) > 1] == ["<user>"]
    pieces = list(bpe.pieces(iter(["x <us", "er> y"])))
    assert "".join(pieces) == "x <user> y"


@pytest.mark.parametrize("trainer", [CharTrainer, ByteTrainer])
def test_settings_that_cannot_work(trainer: type[CharTrainer] | type[ByteTrainer]) -> None:
    with pytest.raises(UserError) as caught:
        trainer(match_special=True)
    assert caught.value.key == "tokenizer.match_special"
    with pytest.raises(UserError) as caught:
        trainer(special_tokens=["a", "a"])
    assert caught.value.key == "tokenizer.special_tokens"


def test_special_tokens_change_no_other_id() -> None:
    """They come last, so that weights can be kept when special tokens are appended."""
    for trainer in (CharTrainer, ByteTrainer):
        few, more = (trainer(special_tokens=marks).train([WORDS], n_documents=2) for marks in (["<a>"], ["<a>", "<b>"]))
        assert few.encode(WORDS).tolist() == trainer().train([WORDS], n_documents=2).encode(WORDS).tolist()
        assert more.special["<a>"] == few.special["<a>"] == few.vocab_size - 1
        assert more.special["<b>"] == few.vocab_size


def test_files_of_earlier_versions() -> None:
    state = json.dumps(CharTrainer().train(["ab"]).to_dict())
    assert state == '{"kind": "char", "alphabet": "ab", "eot": false, "unk": false}'
    assert ByteTrainer().train([]).to_dict() == {"kind": "byte"}


def test_standard_needed_and_appended_tokens() -> None:
    trainers: list[Any] = [CharTrainer, ByteTrainer, partial(BPETrainer, vocab_size=400, min_frequency=2)]
    for make in trainers:
        plain, standard = make(special_tokens="auto"), make(special_tokens="standard")
        old = make(special_tokens=["<|endoftext|>"] if make is trainers[2] else [])
        assert plain.settings() == old.settings(), "auto adds nothing for texts"
        before = plain.train([WORDS, WORDS])
        assert set(STANDARD) <= set(standard.train([WORDS, WORDS]).special)
        plain.reserve(["<bos>", "<eos>"])
        assert {"<bos>", "<eos>"} <= set(plain.train([WORDS, WORDS]).special)
        later = before.with_special_tokens(["<bos>", "<eos>"])
        assert later.vocab_size == before.vocab_size + 2 and later.special["<eos>"] == before.vocab_size + 1
        assert later.encode(WORDS).tolist() == before.encode(WORDS).tolist()
        assert later.with_special_tokens(["<eos>"]).fingerprint() == later.fingerprint()
        assert loads(later.to_json()).special == later.special
        with pytest.raises(UserError, match="the chat template writes <eos>, which is no special token"):
            make(special_tokens=["<bos>"]).reserve(["<bos>", "<eos>"])
        with pytest.raises(UserError, match="not a list of tokens"):
            make(special_tokens="all")


def test_a_pretrained_tokenizer_gets_the_tokens_it_lacks(tmp_path: Path) -> None:
    base = CharTrainer().train([WORDS, WORDS])
    base.save(tmp_path / "tokenizer.json")
    trainer = PretrainedTrainer(path=str(tmp_path), special_tokens="auto")
    before = trainer.fingerprint()
    assert before == PretrainedTrainer(path=str(tmp_path)).fingerprint()
    assert trainer.train([]).vocab_size == base.vocab_size
    trainer.reserve(["<eos>"])
    assert trainer.fingerprint() != before and trainer.train([]).special["<eos>"] == base.vocab_size
    with pytest.raises(UserError, match="<unk> cannot be added to a char tokenizer"):
        base.with_special_tokens(["<unk>"])
    with pytest.raises(UserError, match="the data need special tokens such as <eos>"):
        IdsTrainer(vocab_size=5).reserve(["<eos>"])
    with pytest.raises(UserError, match="takes no special tokens"):
        IdsTrainer(vocab_size=5).train([]).with_special_tokens(["<eos>"])
