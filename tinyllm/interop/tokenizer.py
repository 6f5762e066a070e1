"""Tokenizers as the files that AutoTokenizer reads, and back."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.decoders import BYTE_OF
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.tokenizers.markers import END, UNKNOWN
from tinyllm.utils.files import read_json, read_text

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
CHAT, TEMPLATE = "chat_template.jinja", "chat_template"
OTHER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SPECIAL = ("bos", "eos", "pad", "unk")


def _library(model: dict[str, Any], *, special: dict[str, int], **parts: Any) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": content, **flags} for content, i in special.items()]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": added, **parts, "model": model}


def _of_char(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A word for each character. Without ``<unk>`` the library raises on a character outside, as ours does."""
    known = dict(tokenizer.special)
    vocab = {char: i for i, char in enumerate(tokenizer.alphabet)} | known
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model: dict[str, Any] = {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN}
    return _library(model, special=known, pre_tokenizer=split, decoder={"type": "Fuse"})


def _of_byte(tokenizer: ByteTokenizer) -> dict[str, Any]:
    """Byte-level BPE without merges."""
    special = dict(tokenizer.special)
    vocab = {char: byte for char, byte in sorted(BYTE_OF.items(), key=lambda item: item[1])} | special
    part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    off = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    model: dict[str, Any] = {
        "type": "BPE",
        **off,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": [],
    }
    return _library(model, special=special, pre_tokenizer=part, decoder=part)


WRITERS: dict[type[Tokenizer], Callable[[Any], dict[str, Any] | None]] = {
    CharTokenizer: _of_char,
    ByteTokenizer: _of_byte,
    HuggingFaceTokenizer: HuggingFaceTokenizer.library_state,
    IdsTokenizer: lambda tokenizer: None,
}
"""The tokenizer.json of each kind; numbers have none."""


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """``bos_token_id`` and ``eos_token_id``: a document begins behind the end of another one."""
    return {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id, "pad_token_id": None}


def texts_of(
    tokenizer: Tokenizer, *, special: Mapping[str, Any], max_length: int, chat: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The tokenizer's files by name; none for numbers.

    Args:
        special: ``bos_token_id``, ``eos_token_id`` …, as in config.json.
        max_length: the model's context.
        chat: the chat templates that :func:`read_chat` found.
    """
    chat = chat or {}
    state = WRITERS[type(tokenizer)](tokenizer)
    if state is None:
        return {}
    contents = {token["id"]: token["content"] for token in state["added_tokens"]}
    ids = {name: special.get(f"{name}_token_id") for name in SPECIAL} | {"unk": tokenizer.unk_id}
    first = {name: one[0] if isinstance(one, list) else one for name, one in ids.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    } | {f"{name}_token": contents[i] for name, i in first.items() if i in contents}
    settings |= {TEMPLATE: chat[SETTINGS]} if SETTINGS in chat else {}
    return {
        **({CHAT: chat[CHAT]} if CHAT in chat else {}),
        FILE: json.dumps(state, ensure_ascii=False, indent=2) + "\n",
        SETTINGS: json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
    }


def adds_bos(tokenizer: Tokenizer, bos_id: object, path: Path | None = None) -> bool:
    """Whether a tokenizer from elsewhere puts the begin-of-text token in front by itself.

    Its post-processor says so, or ``add_bos_token`` of ``tokenizer_config.json`` in the directory ``path``.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer) or type(bos_id) is not int:
        return False
    asked = read_json(path / SETTINGS).get("add_bos_token") if path and (path / SETTINGS).is_file() else None
    return asked if isinstance(asked, bool) else tokenizer.puts_first() == bos_id


def read_chat(path: Path) -> dict[str, Any]:
    """The chat templates of a Hugging Face directory by the file they are in; nothing here runs them.

    Raises:
        UserError: a file is damaged, or holds something else.
    """
    found: dict[str, Any] = {}
    if (path / CHAT).is_file():
        found[CHAT] = read_text(path / CHAT)
    if (path / SETTINGS).is_file():
        template = read_json(path / SETTINGS, what="cannot be read").get(TEMPLATE)
        if not isinstance(template, str | list | dict | None):
            hint = "a template, or several with their names"
            raise UserError("not a chat template", key=TEMPLATE, value=template, file=path / SETTINGS, hint=hint)
        found |= {SETTINGS: template} if template is not None else {}
    return found


def read(path: Path, *, vocab_size: int, tell: Callable[[str], None]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory; where it has none, tokens are numbers, which is told.

    Raises:
        UserError: it is in a format that is not read, or damaged.
    """
    if (path / FILE).is_file():
        return _fitting(_ours(load(path / FILE)), vocab_size, path / FILE, tell)
    for name in OTHER_FILES:
        if (path / name).is_file():
            hint = "transformers makes one: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
            raise UserError("a tokenizer without tokenizer.json", file=path / name, hint=hint)
    tell(f"{path} has no tokenizer: prompts and text are token numbers")
    return IdsTokenizer(vocab_size=vocab_size)


def _fitting(tokenizer: Tokenizer, n_words: int, file: Path, tell: Callable[[str], None]) -> Tokenizer:
    """The tokenizer without the special tokens that the embedding has no row for; such a ``[PAD]`` is often added.

    Raises:
        UserError: other tokens have none either.
    """
    if tokenizer.vocab_size <= n_words or not isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    state = tokenizer.library_state()
    beyond = {token["content"]: token["id"] for token in state["added_tokens"] if token["id"] >= n_words}
    special = {content for content in beyond if content in tokenizer.special}
    model = state["model"]
    if isinstance(model["vocab"], dict):
        lost = {token: i for token, i in model["vocab"].items() if i >= n_words and token not in special}
        vocab: Any = {token: i for token, i in model["vocab"].items() if i < n_words}
    else:
        lost = {token: i for i, (token, _) in enumerate(model["vocab"]) if i >= n_words and token not in special}
        vocab = model["vocab"][:n_words]
    lost |= {content: i for content, i in beyond.items() if content not in special}
    if lost:
        shown, i = min(lost.items(), key=lambda item: item[1])
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the model's embedding {n_words:,} rows",
            file=file,
            hint=f"{shown!r} is {i}; use the tokenizer that the model was trained with,"
            " or give the model more rows (transformers: model.resize_token_embeddings)",
        )
    tell(
        f"{file}: {', '.join(sorted(special, key=beyond.__getitem__))} left out:"
        f" the model's embedding has {n_words:,} rows, and none for it"
    )
    kept = [token for token in state["added_tokens"] if token["id"] < n_words]
    return HuggingFaceTokenizer.from_dict(
        state | {"added_tokens": kept, "model": model | {"vocab": vocab}, "post_processor": None}
    )


def _ours(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of ours that was exported to this one; itself where there is none."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    state = tokenizer.library_state()
    vocab = state["model"].get("vocab")
    if not isinstance(vocab, dict):
        return tokenizer
    special = [token["content"] for token in sorted(state["added_tokens"], key=lambda token: token["id"])]
    alphabet = "".join(sorted(token for token in vocab if len(token) == 1 and token not in special))
    others = [token for token in special if token not in (END, UNKNOWN)]
    exported = [
        ByteTokenizer(special),
        CharTokenizer(alphabet, eot=END in vocab, unk=UNKNOWN in vocab, special=others),
    ]
    return next((one for one in exported if _same(WRITERS[type(one)](one), state)), tokenizer)


def _same(written: dict[str, Any] | None, state: dict[str, Any]) -> bool:
    """Whether the library read what we wrote; it may spell out more."""
    if isinstance(written, dict) and isinstance(state, dict):
        return all(name in state and _same(value, state[name]) for name, value in written.items())
    return written == state
