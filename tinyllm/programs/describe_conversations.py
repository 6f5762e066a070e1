"""``describe conversations=F``: the first conversations of a file as the model sees them, with its targets marked."""

import json
import sys
from itertools import islice
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.data.chat.corpus import read_conversations
from tinyllm.data.chat.template import Rendered
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.text import escape_control

SHOWN = 3
LEARNED_FROM = 1000
"""Conversations that a tokenizer is trained on for this; a run trains it on all of its training part."""
BEGIN, END = "⟦", "⟧"
"""Around targets, where there are no colors."""
GREEN, PLAIN = "\033[32m", "\033[0m"


def describe_conversations(cfg: DictConfig, invocation: Invocation) -> int:
    """Print the first conversations of ``conversations``, rendered by ``chat_template``. Returns the exit code.

    Raises:
        UserError: the file holds no conversations, or the template refuses one.
    """
    allow = invocation.allow
    template = build(cfg.chat_template, path="chat_template", allow=allow)
    trainer = build(cfg.tokenizer, path="tokenizer", allow=allow)
    trainer.reserve(template.special_tokens)
    found = list(islice(read_conversations("conversations", cfg.conversations), LEARNED_FROM))
    texts = (text for conversation in found for text in template.plain_texts(conversation))
    tokenizer = trainer.train(texts, n_documents=len(found))
    template.require(tokenizer)
    shown = []
    for conversation in found[:SHOWN]:
        template.check_prompts(conversation)
        shown.append(template.render(conversation, tokenizer))
    if invocation.json:
        print(json.dumps([as_json(rendered, tokenizer) for rendered in shown], ensure_ascii=False))
        return 0
    colored = sys.stdout.isatty()
    for number, rendered in enumerate(shown, start=1):
        targets = int(rendered.is_target.sum())
        print(f"conversation {number}: {len(rendered.ids):,} tokens, {targets:,} of them targets, marked")
        print(marked(rendered, tokenizer, begin=GREEN if colored else BEGIN, end=PLAIN if colored else END))
        print()
    return 0


def as_json(rendered: Rendered, tokenizer: Tokenizer) -> dict[str, Any]:
    """A rendered conversation as plain values."""
    return {
        "ids": rendered.ids.tolist(),
        "targets": rendered.is_target.astype(int).tolist(),
        "text": marked(rendered, tokenizer, begin=BEGIN, end=END),
    }


def marked(rendered: Rendered, tokenizer: Tokenizer, *, begin: str, end: str) -> str:
    """The text of a rendered conversation, special tokens spelled, with marks around its targets."""
    names = {token: text for text, token in tokenizer.special.items()}
    parts: list[str] = []
    characters, inside = tokenizer.stream(), False
    for token, is_target in zip(rendered.ids.tolist(), rendered.is_target.tolist(), strict=True):
        if is_target != inside:
            parts += [escape_control(characters.flush()), begin if is_target else end]
            inside = is_target
        special = names.get(token)
        text = characters.push(token) if special is None else characters.flush() + special
        parts.append(escape_control(text))
    return "".join([*parts, escape_control(characters.flush()), end * inside])
