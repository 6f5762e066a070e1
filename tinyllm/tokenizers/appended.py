"""Tokenizers that extend another one: equal to it, up to special tokens at the end."""

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer


def appended_tokens(old: Tokenizer, new: Tokenizer) -> list[str] | None:
    """The special tokens that ``new`` has after those of ``old``; None: it differs in anything else."""
    added = sorted((i, token) for token, i in new.special.items() if token not in old.special)
    tokens = [token for _, token in added]
    try:
        extended = old.with_special_tokens(tokens)
    except UserError:  # this kind of tokenizer takes none
        return None
    return tokens if extended.fingerprint() == new.fingerprint() else None


def first_difference(old: Tokenizer, new: Tokenizer) -> int | None:
    """The first id of ``old`` with another meaning, or none, in ``new``; None: they only split text in other ways."""
    spellings = [{i: token for token, i in tokenizer.special.items()} for tokenizer in (old, new)]
    for i in range(min(old.vocab_size, new.vocab_size)):
        if spellings[0].get(i) != spellings[1].get(i) or old.bytes_of(i) != new.bytes_of(i):
            return i
    return new.vocab_size if new.vocab_size < old.vocab_size else None


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    """What an id stands for, for messages."""
    if token >= tokenizer.vocab_size:
        return "nothing"
    special = next((spelling for spelling, i in tokenizer.special.items() if i == token), None)
    return repr(tokenizer.bytes_of(token).decode("utf-8", "backslashreplace")) if special is None else special
