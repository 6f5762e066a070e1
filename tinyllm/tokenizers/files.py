"""Reading a tokenizer back from its file."""

from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.tokenizers.base import Tokenizer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.ids import IdsTokenizer
from tinyllm.utils.files import parse_json, read_text

LARGEST = 256 << 20
"""Bytes of a tokenizer file; the largest published ones have 40 MB."""
KINDS: dict[str, type[Tokenizer]] = {cls.kind: cls for cls in (CharTokenizer, ByteTokenizer, IdsTokenizer)}


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in the file ``path``: one of ours, or any ``tokenizer.json`` of Hugging Face.

    Raises:
        UserError: the file is missing, is not a tokenizer, or is damaged.
    """
    path = Path(path)
    try:
        return loads(read_text(path, largest=LARGEST))
    except FileNotFoundError:
        raise UserError("there is no tokenizer file", file=path) from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"cannot read the tokenizer, the file is damaged or not a tokenizer: {error}", file=path
        ) from None


def loads(text: str) -> Tokenizer:
    """The tokenizer that ``Tokenizer.to_json`` wrote. Raises ValueError, TypeError or LookupError for anything else."""
    state = parse_json(text)
    if state.get("kind") in KINDS:
        return KINDS[state["kind"]].from_dict(state)
    from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

    if state.get("kind") == HuggingFaceTokenizer.kind:
        return HuggingFaceTokenizer.from_dict(state)
    return HuggingFaceTokenizer.from_json(text)
