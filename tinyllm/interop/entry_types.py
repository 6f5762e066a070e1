"""Types and ranges of config.json entries, each with a description for error messages."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class EntryType:
    """The values an entry may have.

    Attributes:
        words: the description in error messages.
        fits: whether a value is allowed.
    """

    words: str
    fits: Callable[[Any], bool]


def whole(at_least: int = 1, at_most: int = 2**31 - 1) -> EntryType:
    """A whole number; true and 2.0 are not whole numbers."""
    return EntryType(
        f"a whole number from {at_least:,} to {at_most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most,
    )


def number(above: float = 0.0, *, at_most: float = 1e12) -> EntryType:
    """A finite number in the range (above, at_most]."""
    return EntryType(
        f"a number above {above:g}, at most {at_most:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and above < value <= at_most,
    )


def nullable(type: EntryType) -> EntryType:
    """The type, or null."""
    return EntryType(f"{type.words}, or null", lambda value: value is None or type.fits(value))


def listed(type: EntryType) -> EntryType:
    """A list, possibly empty, of values of a type."""
    words = f"a list, each element {type.words}"
    return EntryType(words, lambda value: isinstance(value, list) and all(type.fits(element) for element in value))


def either(first: EntryType, second: EntryType) -> EntryType:
    """One of two types."""
    return EntryType(f"{first.words}, or {second.words}", lambda value: first.fits(value) or second.fits(value))


FLAG = EntryType("true or false", lambda value: isinstance(value, bool))
TEXT = EntryType("a string", lambda value: isinstance(value, str))
OBJECT = EntryType("an object", lambda value: isinstance(value, dict))
ANY = EntryType("anything", lambda value: True)
# transformers validates these as floats: it refuses 1, and takes 1.0.
FLOAT = EntryType(
    "a number above 0 with a decimal point", lambda value: isinstance(value, float) and 0 < value < math.inf
)
SHARE = EntryType(
    "a number from 0 to 1",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1,
)

# Far above every published model. Larger values are mistakes, and would fill the memory before a weight is read.
WIDTH = whole(1, 2**20)
HEADS = whole(1, 2**16)
LAYERS = whole(1, 1024)
VOCABULARY = whole(1, 2**26)
POSITIONS = whole(1, 2**22)
EXPERTS = whole(1, 4096)

DTYPE = EntryType(
    "the name of a dtype, such as bfloat16",
    lambda value: isinstance(value, str) and isinstance(vars(torch).get(value.removeprefix("torch.")), torch.dtype),
)
TOKEN = nullable(whole(-1))
TOKENS = either(TOKEN, listed(whole(-1)))
"""``eos_token_id`` may be a list."""

METADATA = (
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attn_implementation",
    "auto_map", "chunk_size_feed_forward", "experts_implementation", "finetuning_task", "id2label", "is_decoder",
    "is_llama_config", "label2id", "name_or_path", "num_labels", "prefix", "problem_type", "task_specific_params",
    "tf_legacy_loss", "tokenizer_class", "torchscript", "transformers.js_config", "transformers_version",
    "unsloth_fixed", "unsloth_version", "use_bfloat16",
)  # fmt: skip
"""Entries about the file, its task or training, and the program that wrote it."""
GENERATION_SETTINGS = (
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values",
    "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
)  # fmt: skip
"""Settings of generation, which older versions of transformers kept in config.json."""
HARMLESS: dict[str, EntryType] = {
    **dict.fromkeys((*METADATA, *GENERATION_SETTINGS), ANY),
    **dict.fromkeys(("use_cache", "output_attentions", "output_hidden_states", "return_dict"), FLAG),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"), TOKEN),
    "eos_token_id": TOKENS,
    "architectures": nullable(listed(TEXT)),
    "model_type": TEXT,
    "dtype": nullable(DTYPE),
    "torch_dtype": nullable(DTYPE),
    "initializer_range": FLOAT,
    "attention_dropout": SHARE,
}
"""Entries of any family that do not affect what a model computes, with the values transformers accepts."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "pruned_heads": (None, {}),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "per_layer_config": (None,),
}
"""Entries of any family that may only have a value without effect."""
