"""Tokenizers as files that AutoTokenizer reads, and back."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.decoders import BYTE_OF
from tinyllm.tokenizers.huggingface import BYTE_LEVEL, HuggingFaceTokenizer, bpe_model, library_json
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.tokenizers.special_tokens import END, UNKNOWN
from tinyllm.utils.files import read_json, read_text

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
CHAT, TEMPLATE = "chat_template.jinja", "chat_template"
OTHER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SPECIAL = ("bos", "eos", "pad", "unk")


def _from_char(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A word per character. Without ``<unk>`` the library raises on unknown characters, as CharTokenizer does."""
    special = dict(tokenizer.special)
    vocab = {char: i for i, char in enumerate(tokenizer.alphabet)} | special
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model: dict[str, Any] = {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN}
    return library_json(model, special=special, pre_tokenizer=split, decoder={"type": "Fuse"})


def _from_byte(tokenizer: ByteTokenizer) -> dict[str, Any]:
    """Byte-level BPE without merges."""
    special = dict(tokenizer.special)
    vocab = {char: byte for char, byte in sorted(BYTE_OF.items(), key=lambda item: item[1])} | special
    return library_json(bpe_model(vocab, []), special=special, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)


WRITERS: dict[type[Tokenizer], Callable[[Any], dict[str, Any] | None]] = {
    CharTokenizer: _from_char,
    ByteTokenizer: _from_byte,
    HuggingFaceTokenizer: HuggingFaceTokenizer.library_state,
    IdsTokenizer: lambda tokenizer: None,
}
"""Functions that return the content of tokenizer.json, by class; None for token ids."""


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of special tokens for config.json; a document begins after the end-of-text of the one before it."""
    return {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id, "pad_token_id": None}


def tokenizer_files(
    tokenizer: Tokenizer, *, special: Mapping[str, Any], max_length: int, chat: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The contents of a tokenizer's files by file name; empty for token ids.

    Args:
        special: ``bos_token_id``, ``eos_token_id`` …, as in config.json.
        max_length: the model's context length.
        chat: chat templates from :func:`read_chat_templates`.
    """
    chat = chat or {}
    state = WRITERS[type(tokenizer)](tokenizer)
    if state is None:
        return {}
    contents = {token["id"]: token["content"] for token in state["added_tokens"]}
    ids = {name: special.get(f"{name}_token_id") for name in SPECIAL} | {"unk": tokenizer.unk_id}
    first = {name: id_[0] if isinstance(id_, list) else id_ for name, id_ in ids.items()}
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
    """Whether a Hugging Face tokenizer itself adds the begin-of-text token.

    Its post-processor decides, unless ``add_bos_token`` is set in ``tokenizer_config.json`` of the directory ``path``.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer) or type(bos_id) is not int:
        return False
    setting = read_json(path / SETTINGS).get("add_bos_token") if path and (path / SETTINGS).is_file() else None
    return setting if isinstance(setting, bool) else tokenizer.added_first_id() == bos_id


def read_chat_templates(path: Path) -> dict[str, Any]:
    """The chat templates of a Hugging Face directory by file name. They are kept for export and never executed.

    Raises:
        UserError: a file is damaged or contains no template.
    """
    templates: dict[str, Any] = {}
    if (path / CHAT).is_file():
        templates[CHAT] = read_text(path / CHAT)
    if (path / SETTINGS).is_file():
        template = read_json(path / SETTINGS, what="cannot be read").get(TEMPLATE)
        if not isinstance(template, str | list | dict | None):
            hint = "give a template, or a list of named templates"
            raise UserError("not a chat template", key=TEMPLATE, value=template, file=path / SETTINGS, hint=hint)
        templates |= {SETTINGS: template} if template is not None else {}
    return templates


def read(path: Path, *, vocab_size: int, tell: Callable[[str], None]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory. If there is none, text is read and written as token ids.

    Args:
        vocab_size: rows of the model's embedding.
        tell: called with a sentence if there is no tokenizer, or if special tokens are dropped.

    Raises:
        UserError: the tokenizer is damaged, in an unsupported format, or has more ids than the embedding has rows.
    """
    if (path / FILE).is_file():
        return _without_extra_tokens(_as_exported(load(path / FILE)), vocab_size, path / FILE, tell)
    for name in OTHER_FILES:
        if (path / name).is_file():
            hint = "create one with AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
            raise UserError("the directory has no tokenizer.json", file=path / name, hint=hint)
    tell(f"{path} has no tokenizer: prompts and output are token ids")
    return IdsTokenizer(vocab_size=vocab_size)


def _without_extra_tokens(tokenizer: Tokenizer, n_rows: int, file: Path, tell: Callable[[str], None]) -> Tokenizer:
    """The tokenizer without special tokens beyond the embedding's rows; a ``[PAD]`` is often added that way.

    Raises:
        UserError: an ordinary token is beyond those rows.
    """
    if tokenizer.vocab_size <= n_rows or not isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    state = tokenizer.library_state()
    beyond = {token["content"]: token["id"] for token in state["added_tokens"] if token["id"] >= n_rows}
    special = {content for content in beyond if content in tokenizer.special}
    model = state["model"]
    if isinstance(model["vocab"], dict):
        lost = {token: i for token, i in model["vocab"].items() if i >= n_rows and token not in special}
        vocab: Any = {token: i for token, i in model["vocab"].items() if i < n_rows}
    else:
        lost = {token: i for i, (token, _) in enumerate(model["vocab"]) if i >= n_rows and token not in special}
        vocab = model["vocab"][:n_rows]
    lost |= {content: i for content, i in beyond.items() if content not in special}
    if lost:
        shown, i = min(lost.items(), key=lambda item: item[1])
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, but the model's embedding has {n_rows:,} rows",
            file=file,
            hint=f"{shown!r} has id {i}; use the tokenizer that the model was trained with,"
            " or give the model more rows (transformers: model.resize_token_embeddings)",
        )
    tell(
        f"{file}: {', '.join(sorted(special, key=beyond.__getitem__))} left out, because the id is beyond the"
        f" {n_rows:,} rows of the model's embedding"
    )
    kept = [token for token in state["added_tokens"] if token["id"] < n_rows]
    return HuggingFaceTokenizer.from_dict(
        state | {"added_tokens": kept, "model": model | {"vocab": vocab}, "post_processor": None}
    )


def _as_exported(tokenizer: Tokenizer) -> Tokenizer:
    """The char or byte tokenizer that was exported as this tokenizer.json, else the tokenizer itself."""
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
    candidates = ((candidate, WRITERS[type(candidate)](candidate)) for candidate in exported)
    return next((candidate for candidate, written in candidates if _is_part_of(written, state)), tokenizer)


def _is_part_of(written: Any, state: Any) -> bool:
    """Whether a tokenizer.json contains what an export writes; the library adds defaults when it reads one."""
    if isinstance(written, dict) and isinstance(state, dict):
        return all(name in state and _is_part_of(value, state[name]) for name, value in written.items())
    return bool(written == state)
