"""Tokenizers: text to token ids and back. Each trainer is an option of the config group ``tokenizer``."""

from tinyllm.tokenizers.base import TextStream, Tokenizer, TokenizerTrainer
from tinyllm.tokenizers.pretrained import load

__all__ = ["TextStream", "Tokenizer", "TokenizerTrainer", "load"]
