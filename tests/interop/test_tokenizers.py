"""Exported tokenizers give the same ids in AutoTokenizer, for every kind and for difficult texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support import hub
from tests.tokenizers.kinds import built
from tinyllm.errors import UserError
from tinyllm.interop.tokenizer import read, read_chat_templates, special_ids, tokenizer_files
from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer

ODD = [
    "",
    " ",
    "   two\n\n\tand  more ",
    "\r\n\r line ends \x0b\x0c\x85\u2028",
    "it's don't, 1234567 3.14",
    "naïve café é e\u0301 ß ﬁ Ⅷ",
    "日本語のテキスト 한국어 العربية עִבְרִית",
    "👩‍👩‍👧‍👦🏳️‍🌈 \U0001f468 \U0010ffff",
    "\x00\x01\x7f\ufffd\ufeff\u200b",
    "[UNK] [CLS] ▁ ## Ġ",
    "a" * 3000,
]
ALPHABET = "".join(sorted(set("".join(ODD)) | set(map(chr, range(32, 127)))))
TOKENIZERS: dict[str, Tokenizer] = {
    "char": CharTokenizer(ALPHABET),
    "char with an end": CharTokenizer(ALPHABET, eot=True),
    "char with <unk>": CharTokenizer("".join(sorted("abcdefghij \n")), eot=True, unk=True),
    "byte": ByteTokenizer(),
    "bpe": BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"], max_word=None).train(
        ["the cat sat on the mat " * 20, "naïve 日本"]
    ),
}


def written(tokenizer: Tokenizer, path: Path) -> Path:
    """Write the tokenizer's files beside a config.json of a family that usually has another tokenizer."""
    path.mkdir(exist_ok=True)
    for name, text in tokenizer_files(tokenizer, special=special_ids(tokenizer), max_length=64).items():
        (path / name).write_text(text, encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return path


def auto(path: Path) -> Any:
    from transformers import AutoTokenizer

    hub.quiet()
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_auto_tokenizer_gives_the_same_ids_and_text(name: str, tmp_path: Path) -> None:
    ours = TOKENIZERS[name]
    theirs = auto(written(ours, tmp_path))
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == ours.eot_id
    assert theirs.unk_token_id == ours.unk_id
    for text in ODD:
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids).replace(
            "\ufffd" * (ours.unk_id is not None), ""
        )
    if ours.eot_id is not None:
        assert theirs.decode([ours.eot_id], skip_special_tokens=True) == "" == ours.decode([ours.eot_id])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte", "bpe", "char with <unk>"])
def test_auto_tokenizer_gives_the_same_ids_on_any_text(name: str, tmp_path: Path) -> None:
    """Except texts that spell a special token: transformers matches it, tinyllm reads its characters."""
    ours = TOKENIZERS[name]
    theirs = auto(written(ours, tmp_path))

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    @settings(max_examples=500, deadline=None)
    def check(text: str) -> None:
        assume(not any(token in text for token in theirs.all_special_tokens))
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_exported_tokenizer_is_read_back_as_itself(name: str, tmp_path: Path) -> None:
    ours = TOKENIZERS[name]
    again = read(written(ours, tmp_path), vocab_size=ours.vocab_size, tell=pytest.fail)
    assert again.fingerprint() == ours.fingerprint()


def test_tokenizer_saved_again_by_transformers_is_read_back_as_itself(tmp_path: Path) -> None:
    for name, ours in TOKENIZERS.items():
        auto(written(ours, tmp_path / name)).save_pretrained(tmp_path / "again")
        again = read(tmp_path / "again", vocab_size=ours.vocab_size, tell=pytest.fail)
        assert all((again.encode(text) == ours.encode(text)).all() for text in ODD)
        assert (again.eot_id, again.unk_id, again.vocab_size) == (ours.eot_id, ours.unk_id, ours.vocab_size)


def test_ids_tokenizer_has_no_files_and_no_files_give_an_ids_tokenizer(tmp_path: Path) -> None:
    assert tokenizer_files(IdsTokenizer(vocab_size=5), special={}, max_length=8) == {}
    told: list[str] = []
    assert isinstance(read(tmp_path, vocab_size=5, tell=told.append), IdsTokenizer)
    assert "no tokenizer" in told[0]
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        read(tmp_path, vocab_size=5, tell=told.append)


def saved_with_more(path: Path, kind: str, **flags: bool) -> int:
    """Save a tokenizer.json with one extra token; returns the vocabulary size without it."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    backend = Library.from_str(built(kind))
    size = backend.get_vocab_size()
    backend.add_tokens([AddedToken("[PAD]", **flags)])
    backend.save(str(path / "tokenizer.json"))
    return size


@pytest.mark.parametrize("kind", ["llama", "unigram", "gpt2", "word piece"])
def test_special_token_without_an_embedding_row_is_left_out(kind: str, tmp_path: Path) -> None:
    size, told = saved_with_more(tmp_path, kind, special=True), []
    tokenizer = read(tmp_path, vocab_size=size, tell=told.append)
    assert tokenizer.vocab_size == size
    assert "[PAD] left out" in told[0]
    ids = load(tmp_path / "tokenizer.json").encode("the cat sat.")
    assert tokenizer.encode("the cat sat.").tolist() == ids.tolist()
    assert read(tmp_path, vocab_size=size + 1, tell=pytest.fail).vocab_size == size + 1


def test_ordinary_token_without_an_embedding_row_is_refused(tmp_path: Path) -> None:
    size = saved_with_more(tmp_path, "llama", special=False)
    with pytest.raises(UserError, match=r"'\[PAD\]' has id") as caught:
        read(tmp_path, vocab_size=size, tell=pytest.fail)
    assert "resize_token_embeddings" in str(caught.value)
    with pytest.raises(UserError, match="ids"):
        read(tmp_path, vocab_size=size - 1, tell=pytest.fail)


TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
def test_chat_templates_survive_import_and_export(tmp_path: Path) -> None:
    """Each stays in its file, and AutoTokenizer applies the exported template."""
    from tests.interop.test_families import exported
    from tinyllm.programs.import_hf import import_hf

    path = hub.saved(hub.random_model("llama", 3), tmp_path / "model")
    config = (path / "config.json").read_text()
    written(TOKENIZERS["char with <unk>"], path)
    (path / "config.json").write_text(config)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "b"}]
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": several}))
    assert read_chat_templates(exported(path, tmp_path / "several")) == {"tokenizer_config.json": several}

    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    import_hf(str(path), str(tmp_path / "run"))
    out = exported(tmp_path / "run", tmp_path / "out")
    assert read_chat_templates(out) == {"chat_template.jinja": TEMPLATE}
    chat = [{"role": "a", "content": "bad"}]
    assert auto(out).apply_chat_template(chat, tokenize=False) == "<a>bad"

    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": 1}))
    with pytest.raises(UserError, match="chat_template=1"):
        read_chat_templates(path)
